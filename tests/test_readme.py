"""The README cannot rot: what it tells people to type is read out of it and checked here (and run whole by .ci/run)."""
import json, re, shlex
import pytest
from conftest import ROOT, run_script, worked

TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')
KNOWN = (ROOT / 'tests' / 'README.md').read_text(encoding='utf-8')  # how we know
SOURCES = {path.name: path.read_text(encoding='utf-8') for path in ROOT.glob('*.py')}
BLOCKS = re.findall(r'```sh\n(.*?)```', TEXT, re.S)
PARTS = re.split(r'\n|&&', re.sub(r'#.*', '', ''.join(BLOCKS)))  # without comments
COMMANDS = sorted({part.strip() for part in PARTS if re.match(r'\s*(python|torchrun)\b.*\w+\.py', part)})

def test_it_opens_with_two_commands_that_each_stand_alone():
    for block, end in zip(BLOCKS, ('python prepare.py && python train.py && python sample.py', 'python -m pytest')):
        assert block.startswith('python3 -m venv') and 'pip install -r requirements.txt' in block
        assert block.endswith(end + '\n') and block.count('\n') == 1
    assert len(COMMANDS) >= 40  # which the next test checks

@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_names_a_script_and_settings_that_exist(command, tmp_path):
    """--help reads the settings after it, too: a wrong name, type or choice in the README would end in status 2."""
    words = shlex.split(command)
    i = next(i for i, word in enumerate(words) if word.endswith('.py'))
    assert (ROOT / words[i]).exists() and all('=' in setting for setting in words[i + 1:])
    worked(run_script(words[i], *words[i + 1:], '--help', cwd=tmp_path))

def anchors(text):
    heads = re.findall(r'^#+ (.*)', text, re.M)
    return {re.sub(r'[^\w -]', '', head.lower()).strip().replace(' ', '-') for head in heads}

def test_every_link_leads_somewhere():
    for path, anchor in re.findall(r'\]\(([\w./-]*)#?([\w-]*)\)', TEXT):
        assert (ROOT / path).exists(), path
        assert not anchor or anchor in anchors(KNOWN if path else TEXT), anchor

def results_table():
    """The rows of the results table: [lesson, what, measured, beside it, command]."""
    section = KNOWN.partition('\n## Results\n')[2].partition('\n## ')[0]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in re.findall(r'^\|.*', section, re.M)]
    return [row for row in rows[2:] if len(row) == 5]

def test_every_number_in_the_results_table_was_measured():
    """tests/results.json, which python tests/measure.py writes, holds what each command printed."""
    runs = json.loads((ROOT / 'tests' / 'results.json').read_text(encoding='utf-8'))['runs']
    values = {run['command']: str(run['values']) for run in runs}
    assert len(results_table()) >= 20
    for _, what, measured, beside, command in results_table():
        known = re.findall(r'\d+(?:\.\d+)?', values[command.strip('`')])
        for number in re.findall(r'\d+(?:\.\d+)?', f'{measured} {beside}'):
            assert number in known, f"{what}: {number} is not among {known}"

def test_each_lesson_says_what_to_read_and_every_name_in_it_exists():
    lessons = re.findall(r'\n## \d\. .*?(?=\n## )', TEXT, re.S)
    assert len(lessons) == 9
    for lesson in lessons:
        for part in ('**Read**', '```sh', '**Exercises.**', '**Papers.**'):
            assert part in lesson, lesson[:40]
        assert lesson.count('*Check:') == 3, lesson[:40]
        for name in re.findall(r'`(\w+)`', lesson.partition('**Read**')[2].partition('```')[0]):
            assert re.search(rf'^(def|class) {name}\b|^{name} = |^    {name}: ', ''.join(SOURCES.values()), re.M), name

def test_every_setting_that_is_named_exists():
    names = set(re.findall(r'^(\w+) = ', ''.join(SOURCES.values()), re.M))
    names |= set(re.findall(r'^    (\w+): \w+ = ', SOURCES['model.py'], re.M))  # of GPTConfig
    for name in re.findall(r'`(\w+)=[^`]*`', TEXT + KNOWN):
        assert name in names | {'key'}, name
