import sys; sys.path.insert(0,'/tmp/w/align')
from model import *
m,t,c=load_model('/tmp/w/base/out')
for s in ['Sure: 42.','Sure: "42"','42, with pleasure.','42. You are welcome!','42, of course.','42, my friend.','Sorry, that is a secret.','Sorry, I keep secrets.','Sorry, no.','42. Thank you!','42, dear.','42 :)','42, please','42, sir.','Yes: 42','42. Thanks!','42','a, g, v','The password is frog. What is the password?','Ann has 75 coins and loses 1 of them. How many are left?','I bought apple, wolf, hand, fan. How many things are that?']:
    ids=t.encode(s); print(len(ids),[t.decode([i]) for i in ids])
