"""
Command-line settings for every script here: `key=value` overrides a global.

A script keeps its settings as plain globals at its top, and calls configure() right below them:

    learning_rate = 3e-3  # peak learning rate
    schedule = 'cosine'   # cosine | linear: how the learning rate falls
    given = configure(globals())

and then this works, without a word of argparse:

    python train.py learning_rate=1e-3             # also --learning_rate=1e-3
    python train.py compile                        # a bare name switches a True/False setting on
    python train.py big.txt learning_rate=1e-3     # first the `key = value` lines of big.txt
    python train.py --help                         # the docstring, and each setting

The comment is part of the contract: where it opens with words between bars, as `cosine | linear`
above, exactly those values are accepted. A value must fit the type of its default. Nothing is ever
executed: values are Python literals. A mistake ends in one line on stderr and exit status 2.
"""
import ast, difflib, os, re, sys, traceback
from pathlib import Path

MAX_FILE_BYTES = 2**20  # of a file of settings

def usage(message):
    """End the program over a mistake in the command itself: one line on stderr, exit status 2."""
    line = ' '.join(message.splitlines())  # a value may contain line breaks
    print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)
    sys.exit(2)

def expect(settings, names, least=None, above=None, below=None):
    """End with one line where a setting is out of range: expect(globals(), 'dropout', least=0)."""
    for name in names.split():
        value = settings[name]
        if least is not None and value < least:
            usage(f"{name}={value}: expected at least {least}")
        if above is not None and value <= above:
            usage(f"{name}={value}: expected more than {above}")
        if below is not None and value >= below:
            usage(f"{name}={value}: expected less than {below}")

def configure(settings):
    """
    Override `settings` (a script's globals()) from the command line, and return the names that were
    given there. Does nothing when the script is imported.
    """
    if settings['__name__'] != '__main__':
        return set()
    sys.excepthook = one_line
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='replace')  # a terminal without this character shows a '?'
    source = Path(settings['__file__']).read_text(encoding='utf-8')
    defaults = current(settings)
    given = set()
    arguments = [word for word in sys.argv[1:] if word not in ('-h', '--help')]
    for argument in arguments:
        for key, value, where in read_argument(argument, defaults):
            if key not in defaults:
                usage(f"{where}there is no setting {key!r}{nearest(key, defaults)}")
            settings[key] = convert(key, value, defaults[key], read_choices(source).get(key), where)
            given.add(key)
    if arguments != sys.argv[1:]:  # --help was there; it comes after the checks of the settings
        print(help_text(source))
        sys.exit(0)
    return given

def current(settings):
    """The settings of a script and their values now, as a dictionary: what a checkpoint keeps."""
    source = Path(settings['__file__']).read_text(encoding='utf-8')
    names = re.findall(r'^(\w+) =', '\n'.join(settings_block(source)), re.M)
    return {name: settings[name] for name in names}

def resume(settings, given, saved, fixed=''):
    """
    Take over the settings of a saved run, except out_dir, init_from and those given on the command
    line. A setting that `fixed` names may not be given another value there: that ends in one line.
    """
    for name in fixed.split():
        if name in given and settings[name] != saved[name]:
            usage(f"{name}={settings[name]}: the saved run has "
                  f"{name}={saved[name]}; leave {name} out")
    for name in current(settings):
        if name in saved and name not in given and name not in ('out_dir', 'init_from'):
            settings[name] = saved[name]

def read_argument(argument, defaults):
    """One word of the command line -> [(key, value, where), …]; where begins an error message."""
    key, equals, text = argument.removeprefix('--').partition('=')
    if equals:
        return [(key, text, '')]
    if isinstance(defaults.get(key), bool):
        return [(key, 'True', '')]
    if key in defaults:
        usage(f"{key} needs a value: {key}={defaults[key] or '...'}")
    if os.path.isfile(argument):
        return read_file(argument)
    usage(f"{argument!r} is neither key=value nor a file of settings{nearest(key, defaults)}")

def convert(key, value, default, choices=None, where=''):
    """
    The value for a setting: text from the command line, or a literal from a file, made to fit the
    type of the default.

        ('batch_size', '1e3', 12) -> 1000    ('grad_clip', '5', 1.0) -> 5.0
        ('compile', 'yes', False) -> True
    """
    def refuse(expected):
        usage(f"{where}{key}={value}: expected {expected}")

    if isinstance(default, str):  # taken as it stands: no quotes needed, and it may hold '='
        if not isinstance(value, str):
            refuse("text in quotes")
        if choices and value not in choices:
            refuse(f"one of {', '.join(choices)}{nearest(value, choices)}")
        return value
    try:
        literal = ast.literal_eval(str(value).strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        literal = str(value).strip()  # yes, true, or a mistake: the checks below find it
    if isinstance(default, bool):  # before int, because Python's True is an int, too
        truth = {'true': True, 'yes': True, '1': True, 'false': False, 'no': False, '0': False}
        if str(literal).lower() not in truth:
            refuse("True or False")
        return truth[str(literal).lower()]
    wanted = "a whole number below 2**63" if isinstance(default, int) else "a number"
    if isinstance(literal, bool) or not isinstance(literal, (int, float)):
        refuse(wanted)
    if not abs(literal) <= sys.float_info.max:  # inf, nan (which is not <= anything), 10**400
        refuse(wanted)
    if isinstance(default, int):
        if literal != int(literal) or abs(literal) >= 2**63:  # torch's integers have 64 bits
            refuse(wanted)
        return int(literal)
    return float(literal)

def read_file(path):
    """`key = value` lines, read as Python but never run -> [(key, literal, 'file:line: '), …]"""
    if os.path.getsize(path) > MAX_FILE_BYTES:
        usage(f"{path} is larger than {MAX_FILE_BYTES:,} bytes: expected lines like key = value")
    try:
        with open(path, encoding='utf-8-sig') as f:  # -sig: without the BOM of Windows editors
            lines = ast.parse(f.read()).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as e:  # ValueError: not UTF-8
        usage(f"{path}:{getattr(e, 'lineno', None) or 1}: expected lines of the form key = value")
    found = []
    for line in lines:
        where = f"{path}:{line.lineno}: "
        targets = getattr(line, 'targets', [])  # what stands before the '='
        if len(targets) != 1 or not isinstance(targets[0], ast.Name):
            usage(f"{where}expected key = value")
        key = targets[0].id
        try:
            found.append((key, ast.literal_eval(line.value), where))
        except (ValueError, TypeError, MemoryError, RecursionError):
            usage(f"{where}{key}: expected a literal like 5, 0.1, 'text', True: settings files "
                  "are never executed")
    return found

def settings_block(source):
    """The lines of a script between its docstring and its configure() call."""
    start = ast.parse(source).body[0].end_lineno
    lines = source.splitlines()[start:]
    end = next(i for i, line in enumerate(lines) if re.match(r'(\w+ = )?configure\(', line))
    return lines[:end]

def read_choices(source):
    """`schedule = 'cosine' # cosine | linear: how ...` -> {'schedule': ['cosine', 'linear']}"""
    found = {}
    for line in settings_block(source):
        match = re.match(r"(\w+) *= *'[^']*' *# *([\w-]+(?: \| [\w-]+)+)(?::|$)", line)
        if match:
            found[match[1]] = match[2].split(' | ')
    return found

def help_text(source):
    """What --help prints: the docstring, then the settings as they stand in the source."""
    block = [line for line in settings_block(source) if not re.match(r'(import|from) ', line)]
    settings = '\n'.join(block).rstrip()
    return f"{ast.get_docstring(ast.parse(source))}\n\nsettings (key=value):\n{settings}"

def nearest(word, words):
    """' (did you mean ...?)' for a misspelling; else, if `words` are all the settings, a hint."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]}?)"
    return "" if isinstance(words, list) else " (--help lists the settings)"

def one_line(kind, error, trace):
    """
    Python's excepthook: errors that users cause (no such file, disk full, no memory, Ctrl-C) end in
    one line, most with the place in the code. TRACEBACK=1 python … shows the whole traceback.
    """
    folder = os.path.dirname(os.path.abspath(__file__))
    place = os.path.basename(sys.argv[0])
    for frame in traceback.extract_tb(trace):  # the innermost line of these files, not of torch
        if os.path.dirname(os.path.abspath(frame.filename)) == folder:
            place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    # torch has no class of its own for "no memory on the CPU", or for a size past 64 bits
    no_memory = issubclass(kind, RuntimeError) and re.search('allocate|overflow', str(error))
    if issubclass(kind, BrokenPipeError):  # python sample.py | head: the reader has seen enough
        sys.stdout = None
    elif os.environ.get('TRACEBACK'):
        sys.__excepthook__(kind, error, trace)
    elif issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
    elif issubclass(kind, MemoryError) or no_memory:
        first_line = str(error).partition('\n')[0]
        print(f"{place}: not enough memory, take a smaller model or batch_size: {first_line}",
              file=sys.stderr)
    elif issubclass(kind, OSError):
        what = f"{error.filename}: {error.strerror or error}" if error.filename else str(error)
        print(f"{place}: {what}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
