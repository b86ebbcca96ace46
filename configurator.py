"""
Command-line settings for every script here: `key=value` overrides a global.

A script keeps its settings as plain globals at the top of the file and calls configure() right below them:

    learning_rate = 3e-3  # peak learning rate
    schedule = 'cosine'   # cosine | linear | step | wsd: how the learning rate falls
    configure(globals())

and then this works, without a word of argparse:

    python train.py learning_rate=1e-3             # also --learning_rate=1e-3
    python train.py compile                        # a bare name switches a True/False setting on; also --compile
    python train.py big.txt learning_rate=1e-3     # first the `key = value` lines of big.txt, then the command line
    python train.py --help                         # the docstring, and each setting with its comment

The comment is part of the contract: where it opens with words between bars, as `cosine | linear | step |
wsd:` above, exactly those values are accepted. A value must fit the type of its default. Nothing is ever
executed: values are Python literals, read by ast.literal_eval. Every mistake ends in one line on stderr and
exit status 2.
"""
import ast, difflib, os, re, sys

def usage(message):
    """End the program over a mistake in the command itself: one line on stderr, exit status 2."""
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    sys.exit(2)

def expect(settings, names, least=None, above=None, below=None):
    """End with one line where a setting makes no sense: expect(globals(), 'dropout beta1', least=0, below=1)."""
    bounds = [(least, 'at least', lambda v: v >= least), (above, 'more than', lambda v: v > above),
              (below, 'less than', lambda v: v < below)]
    for name in names.split():
        if not all(holds(settings[name]) for bound, _, holds in bounds if bound is not None):
            wanted = ' and '.join(f"{word} {bound}" for bound, word, _ in bounds if bound is not None)
            usage(f"{name}={settings[name]}: expected {wanted}")

def configure(settings):
    """
    Override `settings` (a script's globals()) from the command line, and return the names that were given
    there. Does nothing when the script is imported.
    """
    if settings['__name__'] != '__main__':
        return set()
    sys.excepthook = one_line  # from here on, what the operating system refuses ends in one line too
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='replace')  # a terminal that cannot show a character shows a question mark
    with open(settings['__file__'], encoding='utf-8') as f:
        source = f.read()
    defaults = {k: v for k, v in settings.items()
                if not k.startswith('_') and isinstance(v, (bool, int, float, str, type(None)))}
    choices, given = read_choices(source), set()
    for arg in (a for a in sys.argv[1:] if a not in ('-h', '--help')):
        key, equals, text = arg.removeprefix('--').partition('=')
        if equals:
            pairs = [(key, text, '')]
        elif isinstance(defaults.get(key), bool):
            pairs = [(key, 'True', '')]
        elif key in defaults:
            usage(f"{key} needs a value: {key}={defaults[key] or '...'}")
        elif os.path.isfile(arg):
            pairs = read_file(arg)
        else:
            usage(f"{arg!r} is neither key=value nor a file of settings{nearest(key, defaults)}")
        for key, value, where in pairs:
            if key not in defaults:
                usage(f"{where}there is no setting {key!r}{nearest(key, defaults)}")
            settings[key] = convert(key, value, defaults[key], choices.get(key), where)
            given.add(key)
    if any(arg in ('-h', '--help') for arg in sys.argv[1:]):  # answered last: a wrong setting is named even then
        print(help_text(source))
        sys.exit(0)
    return given

def convert(key, value, default, choices=None, where=''):
    """
    The value for a setting: text from the command line, or a literal from a file, made to fit the default's type.
    ('batch_size', '1e3', 12) -> 1000    ('grad_clip', '5', 1.0) -> 5.0    ('compile', 'yes', False) -> True
    """
    def wrong(expected):
        usage(f"{where}{key}={value}: expected {expected}")
    number = "a whole number" if isinstance(default, int) else "a number" if default is not None else "a number or None"
    if isinstance(default, str):  # text is taken as it stands: no quotes needed, and it may hold '=' or start with '-'
        if not isinstance(value, str):
            wrong("text in quotes")
        if choices and value not in choices:
            wrong(f"one of {', '.join(choices)}{nearest(value, choices)}")
        return value
    literal = value
    if isinstance(value, str):
        try:
            literal = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            literal = value.strip()  # yes, true, or a mistake that the checks below name
    if isinstance(default, bool):  # note: bool before int, because True is an int to Python
        truth = {'true': True, 'yes': True, '1': True, 'false': False, 'no': False, '0': False}
        if str(literal).lower() not in truth:
            wrong("True or False")
        return truth[str(literal).lower()]
    if literal is None or str(literal).lower() == 'none':
        if default is not None:
            wrong(number)
        return None
    if isinstance(literal, bool) or not isinstance(literal, (int, float)) or not abs(literal) <= sys.float_info.max:
        wrong(number)  # note: nan is not <= anything
    if isinstance(default, int):
        if literal != int(literal):
            wrong(number)
        return int(literal)
    return float(literal) if isinstance(default, float) else literal

def read_file(path):
    """`key = value` lines, as Python would read them but never run -> [(key, literal, 'file:line: '), ...]"""
    try:
        with open(path, encoding='utf-8') as f:
            lines = ast.parse(f.read()).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as e:  # note: UnicodeDecodeError is a ValueError
        usage(f"{path}:{getattr(e, 'lineno', None) or 1}: expected lines of the form key = value")
    pairs = []
    for line in lines:
        where = f"{path}:{line.lineno}: "
        if not (isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name)):
            usage(f"{where}expected key = value")
        key = line.targets[0].id
        try:
            pairs.append((key, ast.literal_eval(line.value), where))
        except (ValueError, TypeError, MemoryError, RecursionError):
            usage(f"{where}{key}: expected a literal like 5, 0.1, 'text', True: settings files are never executed")
    return pairs

def settings_block(source):
    """The lines of a script between its docstring and its configure() call."""
    start = ast.parse(source).body[0].end_lineno
    lines = source.splitlines()[start:]
    return lines[:next(i for i, line in enumerate(lines) if re.match(r'(\w+ = )?configure\(', line))]

def read_choices(source):
    """`schedule = 'cosine' # cosine | linear: how ...` -> {'schedule': ['cosine', 'linear']}"""
    found = {}
    for line in settings_block(source):
        m = re.match(r"(\w+) *= *'[^']*' *# *([\w-]+(?: \| [\w-]+)+)(?::|$)", line)
        if m:
            found[m[1]] = m[2].split(' | ')
    return found

def help_text(source):
    """What --help prints: the script's docstring, then the settings as they stand in its source."""
    block = [line for line in settings_block(source) if not re.match(r'(import|from) ', line)]
    return ast.get_docstring(ast.parse(source)) + '\n\nsettings (key=value):\n' + '\n'.join(block).rstrip()

def nearest(word, words):
    """' (did you mean ...?)' for a misspelling, else a pointer to --help where the words are settings."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]}?)"
    return "" if isinstance(words, list) else " (--help lists the settings)"

def one_line(kind, error, trace):
    """An excepthook: no such file, disk full, permission denied, Ctrl-C … are the user's to mend, so say just that."""
    if issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
    elif issubclass(kind, BrokenPipeError):  # python sample.py | head: the reader has seen enough
        sys.stdout = None
    elif issubclass(kind, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"{os.path.basename(sys.argv[0])}: {what}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
