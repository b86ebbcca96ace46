"""The README cannot rot: what it tells people to type is read out of it and checked here (and run whole by .ci/run)."""
import re, shlex
import pytest
from conftest import ROOT, run

TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'```sh\n(.*?)```', TEXT, re.S)
COMMANDS = sorted({part.strip() for block in BLOCKS for line in block.splitlines() for part in line.split('#')[0].split('&&')
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
    done = run(script, *settings, '--help', cwd=tmp_path)
    assert done.returncode == 0, done.stderr

def test_every_file_it_links_to_exists():
    for path in re.findall(r'\]\(([\w./-]+)\)', TEXT):
        assert (ROOT / path).exists(), path
