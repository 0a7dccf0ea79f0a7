"""Text and command lines that nobody would write: a valid study, or one sentence and exit code 2; never a traceback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from stability import cli
from stability.registry import InputError
from stability.store import read_parameters
from stability.study import Study, load_study, parse_study

ROOT = Path(__file__).parent.parent
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}

VALUES = [
    *("-1", "0", "1e400", "nan", "inf", "''", "[]", "{}", "true", "[[1]]", "'../../x'", "99999999999999999999"),
    *("1979-05-27", '"\\u0000"', "[0.0, 'a']", "-0.0", "1e-320", "{a = 1}", "'clip'", "['clip']"),
]

# Without digits: a tower with a billion layers is valid, and takes all memory.
INSERTED = st.text(st.characters(exclude_categories=("Cs", "N")), max_size=12)

MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), st.integers(0, 4000), st.integers(1, 60), st.just("")),
        st.tuples(st.just("insert"), st.integers(0, 4000), st.just(0), INSERTED),
        st.tuples(
            st.just("value"),
            st.integers(0, 60),
            st.just(0),
            st.sampled_from(VALUES),
        ),
        st.tuples(st.just("line"), st.integers(0, 90), st.just(0), st.sampled_from(["drop", "twice", "last"])),
    ),
    min_size=1,
    max_size=4,
)


def mutated(text: str, changes: list[tuple[str, int, int, str]]) -> str:
    """Return *text* after cuts, insertions, other values and lines lost, doubled or moved."""
    for kind, place, length, what in changes:
        if kind in ("cut", "insert"):
            place = min(place, len(text))
            text = text[:place] + what + text[place + length :]
            continue
        lines = text.splitlines()
        chosen = [n for n, line in enumerate(lines) if " = " in line] if kind == "value" else [*range(len(lines))]
        if not chosen:
            continue
        number = chosen[place % len(chosen)]
        if kind == "value":
            lines[number] = f"{lines[number].split(' = ')[0]} = {what}"
        elif what == "drop":
            del lines[number]
        else:
            lines.insert(number if what == "twice" else len(lines), lines[number])
        text = "\n".join(lines)
    return text


def judge(text: str) -> None:
    """Parse a study: it is one, or one sentence says why not."""
    try:
        found = parse_study(text, "fuzz.toml", "fuzz")
    except InputError as error:
        sentence = str(error)
        assert sentence.strip()
        assert len(sentence.strip().splitlines()) == 1, sentence
        assert sentence.startswith("fuzz.toml"), sentence
    else:
        assert isinstance(found, Study)
        assert parse_study(text, "fuzz.toml", "fuzz").hash == found.hash


@settings(max_examples=150, **QUIET)
@given(changes=MUTATIONS)
def test_a_mutated_study_is_a_study_or_one_sentence(tiny_text, changes):
    judge(mutated(tiny_text, changes))


@pytest.mark.slow
@settings(max_examples=2000, **QUIET)
@given(changes=MUTATIONS)
def test_two_thousand_mutated_studies_are_studies_or_one_sentence(tiny_text, changes):
    judge(mutated(tiny_text, changes))


@settings(max_examples=50, **QUIET)
@given(text=st.text(max_size=200))
def test_any_text_at_all_is_a_study_or_one_sentence(text):
    judge(text)


VERBS = ["list", "init", "plan", "run", "power", "check", "compare", "report", "export", "publish", "landscape"]
VERBS += ["calibrate", "verify", "rnu", ""]
WORDS = st.one_of(
    st.sampled_from(["--scale", "--device", "--on", "--out", "--run", "--groups", "--format", "--seed", "--nonsense"]),
    st.sampled_from(
        ["tpu", "dusk", "processes:0", "processes:x", "dask:", "nowhere", "../nowhere", "-1", "1e3", "=", "--"]
    ),
    st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8"), max_size=8).filter(lambda w: w[:1] != "/"),
)


def refused(words: list[str], monkeypatch, capsys) -> None:
    """Call the command line in this process: wrong input ends with 2 and one sentence."""
    monkeypatch.setattr(sys, "argv", ["stability", *words])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    if ended.value.code == 2 and printed.err:
        assert printed.err.startswith("stability: "), printed.err
        assert len(printed.err.strip().split("\n")) == 1, printed.err
    else:
        assert ended.value.code in (0, 1, 2, None), (words, printed.err)


# "bad" is in no catalogue, so whatever follows a verb that works, nothing is trained.
LINES = st.tuples(st.sampled_from(VERBS), st.sampled_from(["bad", "no/such", "--bad"]), st.lists(WORDS, max_size=4))


@settings(max_examples=50, **QUIET)
@given(line=LINES)
def test_a_command_line_that_makes_no_sense_is_one_sentence_and_writes_nothing(
    tmp_path_factory, monkeypatch, capsys, line
):
    nonsense(tmp_path_factory, monkeypatch, capsys, line)


@pytest.mark.slow
@settings(max_examples=2000, **QUIET)
@given(line=LINES)
def test_two_thousand_command_lines_that_make_no_sense(tmp_path_factory, monkeypatch, capsys, line):
    nonsense(tmp_path_factory, monkeypatch, capsys, line)


def nonsense(tmp_path_factory, monkeypatch, capsys, line) -> None:
    here = tmp_path_factory.getbasetemp() / "nonsense"
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    verb, first, rest = line
    refused([verb, first, *rest] if verb else [first, *rest], monkeypatch, capsys)
    assert list(here.iterdir()) == []


def test_nothing_pickles_and_nothing_loads_code():
    forbidden = re.compile(
        r"\bpickle\b|torch\.(load|save)\(|allow_pickle\s*=\s*True|(?<![.`\w])eval\(|joblib|dill|shelve|marshal"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "stability").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if forbidden.search(line)
    ]
    assert found == []


def test_a_pickle_in_place_of_parameters_or_of_a_study_is_refused_unopened(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    for name in ("bomb.safetensors", "bomb.toml"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="cannot be read"):
        read_parameters(tmp_path / "bomb.safetensors", "a")
    with pytest.raises(InputError):
        load_study(tmp_path / "bomb.toml")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "a/../../escape"])
def test_a_name_in_a_study_cannot_lead_out_of_the_directory(tiny_text, name):
    text = tiny_text.replace('"siglip-log-b"', f'"{name}"').replace("[arms.siglip-log-b]", f'[arms."{name}"]')
    try:
        study = parse_study(text, "t.toml", "t")
    except InputError:
        return
    from stability.grid import groups_of, runs_of

    groups = groups_of(runs_of(study), lambda run: 32)
    assert all(re.fullmatch(r"[0-9a-f]+", group.id) for group in groups)


def as_processes(folder: Path, lines: list[tuple[str, str, list[str]]]) -> None:
    """Run command lines as a user does, two at a time: each ends with 2 and one sentence, and writes nothing."""

    def ended(line: tuple[str, str, list[str]]) -> subprocess.CompletedProcess[str]:
        verb, first, rest = line
        words = [word for word in (verb, first, *rest) if word]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-m", "stability", *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=180,
            text=True,
            check=False,
        )

    with ThreadPoolExecutor(2) as threads:
        for line, process in zip(lines, threads.map(ended, lines), strict=True):
            assert process.returncode == 2, (line, process)
            assert process.stderr.startswith("stability: "), (line, process.stderr)
            assert len(process.stderr.strip().split("\n")) == 1, (line, process.stderr)
    assert list(folder.iterdir()) == []


def drawn(count: int) -> list[tuple[str, str, list[str]]]:
    """Return *count* command lines of the grammar that cannot work whatever their words are: every verb takes part."""
    verbs = [verb for verb in VERBS if verb]
    plain = WORDS.filter(lambda word: word != "--")
    lines = st.tuples(st.just("no/such"), st.lists(plain, max_size=3))
    found: list[tuple[str, list[str]]] = []

    @seed(8)
    @settings(max_examples=count, phases=[Phase.generate], **QUIET)
    @given(line=lines)
    def collect(line):
        found.append(line)

    collect()
    return [(verbs[place % len(verbs)], *found[place % len(found)]) for place in range(count)]


def test_three_command_lines_as_processes(tmp_path):
    as_processes(tmp_path, drawn(3))


@pytest.mark.slow
def test_twenty_command_lines_as_processes(tmp_path):
    as_processes(tmp_path, drawn(20))
