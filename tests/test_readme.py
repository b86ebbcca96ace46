"""The README cannot rot: what it tells people to type is read out of it and checked here (and run whole by .ci/run)."""
import json, re, shlex
import pytest
from conftest import ROOT, run_script

TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'```sh\n(.*?)```', TEXT, re.S)
COMMANDS = sorted({part.strip() for block in BLOCKS for line in block.splitlines()
                   for part in line.split('#')[0].split('&&')
                   if re.match(r'\s*(python|torchrun)\b.*\w+\.py', part)})

def test_it_opens_with_two_commands_that_each_stand_alone():
    first, second = BLOCKS[:2]
    for block in (first, second):
        assert block.count('\n') == 1 and block.startswith('python3 -m venv') and 'pip install -r requirements.txt' in block
    assert first.rstrip().endswith('python prepare.py && python train.py && python sample.py') and second.rstrip().endswith('python -m pytest')

def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 8

@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_names_a_script_and_settings_that_exist(command, tmp_path):
    """--help reads the settings after it, too: a wrong name, type or choice in the README would end in status 2."""
    words = shlex.split(command)
    script = next(w for w in words if w.endswith('.py'))
    assert (ROOT / script).exists()
    settings = words[words.index(script) + 1:]
    for setting in settings:
        assert '=' in setting, setting
    done = run_script(script, *settings, '--help', cwd=tmp_path)
    assert done.returncode == 0, done.stderr

def test_every_file_it_links_to_exists():
    for path in re.findall(r'\]\(([\w./-]+)\)', TEXT):
        assert (ROOT / path).exists(), path

def results_table():
    """The rows of the results table: [lesson, what, measured, beside it, command]."""
    section = TEXT.partition('\n## Results\n')[2].partition('\n## ')[0]
    rows = [[cell.strip() for cell in line.strip('|').split('|')]
            for line in section.splitlines() if line.startswith('|')]
    return [row for row in rows[2:] if len(row) == 5]

def test_every_number_in_the_results_table_was_measured():
    """tests/results.json, which python tests/measure.py writes, holds what each command printed."""
    stored = {run['command']: run['values']
              for run in json.loads((ROOT / 'tests' / 'results.json').read_text(encoding='utf-8'))['runs']}
    rows = results_table()
    assert len(rows) >= 20
    for _, what, measured, beside, command in rows:
        values = stored[command.strip('`')]
        known = set(re.findall(r'\d+(?:\.\d+)?', str(values)))
        for number in re.findall(r'\d+(?:\.\d+)?', measured + ' ' + beside):
            assert number in known, f"{what}: {number} is not among {values}"

def test_each_lesson_says_what_to_read_and_every_name_in_it_exists():
    source = {path.name: path.read_text(encoding='utf-8') for path in ROOT.glob('*.py')}
    lessons = re.findall(r'\n## \d\. .*?(?=\n## )', TEXT, re.S)
    assert len(lessons) == 9
    for lesson in lessons:
        for part in ('**Read**', '```sh', '**Exercises.**', '**Papers.**'):
            assert part in lesson, lesson[:40]
        assert lesson.count('*Check:') == 3, lesson[:40]
        for name in re.findall(r'`(\w+)`', lesson.partition('**Read**')[2].partition('```')[0]):
            assert any(re.search(rf'^(def|class) {name}\b|^{name} = |^    {name}: ', text, re.M)
                       for text in source.values()), name

def test_every_setting_that_is_named_exists():
    settings = set()
    for path in ROOT.glob('*.py'):
        settings |= set(re.findall(r'^(\w+) = ', path.read_text(encoding='utf-8'), re.M))
    fields = set(re.findall(r'^    (\w+): \w+ = ', (ROOT / 'model.py').read_text(encoding='utf-8'), re.M))
    for name in set(re.findall(r'`(\w+)=[^`]*`', TEXT)) - {'key'}:
        assert name in settings | fields, name

def test_every_link_within_it_leads_somewhere():
    heads = {re.sub(r'[^\w -]', '', head.lower()).strip().replace(' ', '-')
             for head in re.findall(r'^#+ (.*)', TEXT, re.M)}
    for target in re.findall(r'\]\(#([\w-]+)\)', TEXT):
        assert target in heads, target
