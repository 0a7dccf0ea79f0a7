"""Studies: what is valid, what is one exact sentence, and what a run's identity depends on."""

from __future__ import annotations

import re
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.grid import Run, groups_of, runs_of
from stability.registry import InputError
from stability.study import SCALES, load_study, parse_study, study_files

# ruff: noqa: E501 (a table: one mistake and its sentence a line)
EDITS = [
    # (what stands in the tiny study, what is written instead, the whole sentence)
    ('title = "Tiny"', 'titel = "Tiny"', r"t\.toml: titel: unknown key; did you mean 'title'\? \(known: .*\)"),
    ('title = "Tiny"', "", r"t\.toml: title: required, but missing"),
    ("steps = 8", "steps = 8\nstep = 9", r"t\.toml: train\.step: unknown key; did you mean 'steps'\? \(known: betas, .*\)"),
    ("steps = 8", 'steps = "8"', r"t\.toml: train\.steps: got '8'; allowed: a valid integer"),
    ("steps = 8", "steps = 8.5", r"t\.toml: train\.steps: got 8\.5; allowed: a valid integer"),
    ("steps = 8", "steps = 0", r"t\.toml: train\.steps: got 0; allowed: greater than 0"),
    ("steps = 8", "steps = true", r"t\.toml: train\.steps: got True; allowed: a valid integer"),
    ("warmup = 2", "warmup = 8", r"t\.toml: train\.warmup: got 8; allowed: fewer than train\.steps = 8"),
    ("warmup = 2", "clip_norm = 1.0\nclip_quantile = 0.5", r"t\.toml: train\.clip_norm: give clip_norm or clip_quantile, not both"),
    ("lr = [0.01]", "lr = []", r"t\.toml: grid\.lr: got \[\]; allowed: at least one value"),
    ("lr = [0.01]", "lr = [nan]", r"t\.toml: grid\.lr\[0\]: got nan; allowed: a finite number"),
    ("lr = [0.01]", "lr = [0.01, 0.01]", r"t\.toml: grid\.lr: got \[0\.01, 0\.01\]; allowed: values that differ"),
    ("noise = [0.0, 0.4]", "noise = [0.0, 1.4]", r"t\.toml: grid\.noise\[1\]: got 1\.4; allowed: less than or equal to 1"),
    ("batch_size = [8, 16]", "batch_size = [8, 1439]", r"t\.toml: grid\.batch_size\[1\]: got 1439; allowed: at most 1438, the training pairs of 'digits'"),
    ('arms = ["clip", ', 'arms = ["clipp", ', r"t\.toml: grid\.arms\[0\]: unknown loss 'clipp'; did you mean 'clip'\? \(known: .*siglip-log-b.*\)"),
    ('loss = "siglip"', 'loss = "sigclip"', r"t\.toml: arms\.siglip-log-b\.loss: unknown loss 'sigclip'; did you mean 'siglip'\?.*"),
    ('bias = "-log B"', 'bais = "-log B"', r"t\.toml: arms\.siglip-log-b\.bais: loss 'siglip' has no such option; did you mean 'bias'\?.*"),
    ('bias = "-log B"', 'step = 3', r"t\.toml: arms\.siglip-log-b\.step: loss 'siglip' has no such option .*"),
    ('loss = "siglip"', 'loss = "focal_sigmoid"\nstep = 3', r"t\.toml: arms\.siglip-log-b\.step: loss 'focal_sigmoid' has no such option.*"),
    ('bias = "-log B"', 'bias = { initial = -5.0, lr_multiplier = 0 }', r"t\.toml: arms\.siglip-log-b\.bias: a scalar's 'lr_multiplier' is a positive number; got 0"),
    ('bias = "-log B"', 'bias = "-log b"', r"t\.toml: arms\.siglip-log-b\.bias: a scalar starts at a finite number or at '-log B'; got '-log b'"),
    ('name = "digits"', 'name = "digit"', r"t\.toml: data\.name: unknown dataset 'digit'; did you mean 'digits'\? \(known: .*\)"),
    ('name = "digits"', 'name = "digits"\nheld_out = "a"', r"t\.toml: data\.held_out: got 'a'; allowed: a number, as 0\.2"),
    ('name = "mlp"', 'name = "token_transformer"', r"t\.toml: model\.image: encoder 'token_transformer' does not read images \(known: .*patch_transformer\)"),
    ("width = 8", "widht = 8", r"t\.toml: model\.image\.widht: encoder 'mlp' has no such option; did you mean 'width'\?.*"),
    ("[probes.geometry]", "[probes.geometri]", r"t\.toml: probes\.geometri: unknown probe 'geometri'; did you mean 'geometry'\?.*"),
    ("batches = 3", "batchs = 3", r"t\.toml: probes\.gradient_noise\.batchs: probe 'gradient_noise' has no such option; did you mean 'batches'\?.*"),
    ('id = "slope"', 'id = "noise"', r"t\.toml: claims\[1\]\.id: 'noise' is taken by an earlier claim; ids are unique"),
    ('measure = "gradient_noise_fraction"', 'measure = "gradient_noise"', r"t\.toml: claims\[0\]\.measure: no probe of this study makes 'gradient_noise'; did you mean .*"),
    ('contrast = "slope"', 'contrast = "slop"', r"t\.toml: claims\[1\]\.contrast: unknown contrast 'slop'; did you mean 'slope'\?.*"),
    ('axis = "noise"', "", r"t\.toml: claims\[1\]\.axis: required by contrast 'slope', but missing"),
    ('axis = "noise"', 'axis = "lr"', r"t\.toml: claims\[1\]\.axis: grid\.lr has one value; allowed: two or more"),
    ("threshold = 0.03", "", r"t\.toml: claims\[2\]\.threshold: required by contrast 'time_to_threshold', but missing"),
    ('compare = ["siglip-log-b", "clip"]', 'compare = ["siglip", "clip"]', r"t\.toml: claims\[0\]\.compare\[0\]: 'siglip' is not in grid\.arms; did you mean 'siglip-log-b'\?.*"),
    ("batches = 3", "batches = 1", r"t\.toml: probes\.gradient_noise\.batches: got 1; allowed: 2 or more"),
    ("width = 8", "width = -8", r"t\.toml: model\.image\.width: got -8; allowed: 1 or more"),
    ("heads = 1", "heads = 3", r"t\.toml: model\.text: encoder 'token_transformer': heads = 3 does not divide width = 4"),
    ('name = "digits"', 'name = "digits"\nheld_out = 1.5', r"t\.toml: data\.held_out: got 1\.5; allowed: a share between 0 and 1"),
    ('compare = ["siglip-log-b", "clip"]', 'compare = ["clip", "clip"]', r"t\.toml: claims\[0\]\.compare: got 'clip' twice; allowed: two arms that differ, or one arm and two measures \(against_measure\)"),
    ('measure = "gradient_noise_fraction"', 'measure = "sharpness_ratio"', r"t\.toml: claims\[0\]\.measure: probes\.curvature\.seeds leaves out runs that a claim on 'sharpness_ratio' needs"),
    ('contrast = "difference"', 'contrast = "difference"\ntransform = "log_above_chance"', r"t\.toml: claims\[0\]\.transform: 'gradient_noise_fraction' has no chance level \(measures that have: .*\)"),
    ('contrast = "difference"', 'contrast = "difference"\nthreshold = 1.0', r"t\.toml: claims\[0\]\.threshold: contrast 'difference' takes no threshold"),
    ("batch_size = [8]", "batch_size = [9]", r"t\.toml: probes\.cross_check\.batch_size: got 9; allowed: values of grid\.batch_size \(8, 16\)"),
    ("[arms.siglip-log-b]", "[arms.siglip-log]", r"t\.toml: arms\.siglip-log: an arm that grid\.arms does not list; did you mean 'siglip-log-b'\?.*"),
    ("[arms.siglip-log-b]", '[arms.clip]\nloss = "siglip"\n[arms.siglip-log-b]', r"t\.toml: arms\.clip: 'clip' is the name of another loss; give the arm a name of its own"),
    ("primary = true", "primary = false", r"t\.toml: claims: 0 claims are primary; allowed: exactly one"),
    ("margin = 0.1", "margin = 0", r"t\.toml: claims\[0\]\.margin: got 0; allowed: greater than 0"),
    ('expect = "lower"', 'expect = "smaller"', r"t\.toml: claims\[0\]\.expect: got 'smaller'; allowed: 'higher', 'lower' or 'equal'"),
    ("[scales.smoke]", "[scales.smok]", r"t\.toml: scales\.smok: unknown scale 'smok'; did you mean 'smoke'\?.*"),
    ("[scales.smoke]", "[scales.smoke]\nreplications.otter.grid.seeds = 2", r"t\.toml: scales\.smoke\.replications\.otter: the study has no replication 'otter'.*"),
    ("[[claims]]", '[rankings]\nmeasure = "recall_at_1"\n[[claims]]', r"t\.toml: rankings: got one table; allowed: a list of tables, each under \[\[rankings\]\]"),
    ('measure = "gradient_noise_fraction"', 'measure = "bias"', r"t\.toml: claims\[0\]\.compare\[1\]: loss 'clip' has no `bias`, which measure 'bias' needs"),
    ("[probes.geometry]", "[probes]\ngeometry = 3\n[probes.similarity]", r"t\.toml: probes\.geometry: got 3; allowed: a table"),
    ("batch_size = [8, 16]", "batch_size = 8", r"t\.toml: grid\.batch_size: got 8; allowed: a list"),
    ("loss = \"siglip\"", "loss = 3", r"t\.toml: arms\.siglip-log-b\.loss: got 3; allowed: a text, in quotes"),
    ('compare = ["siglip-log-b", "clip"]', 'compare = ["clip"]', r"t\.toml: claims\[0\]\.compare: got \['clip'\]; allowed: a list of two values"),
    ('compare = ["siglip-log-b", "clip"]', 'compare = ["clip", "a", "b"]', r"t\.toml: claims\[0\]\.compare: got \['clip', 'a', 'b'\]; allowed: a list of two values"),
    ("[probes.geometry]", "[replications]\ndigits = 'dig'\n[probes.geometry]", r"t\.toml: replications\.digits: got 'dig'; allowed: a table of overrides, as \[replications\.digits\]"),
    ("[data]", "[data", r"t\.toml: not valid TOML: .*"),
    ("seeds = 3", "seeds = 2026-01-01", r"t\.toml: grid\.seeds: got '2026-01-01'; allowed: a valid integer"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "sentence"), EDITS, ids=[new or f"no {old}" for old, new, _ in EDITS])
def test_a_mistake_in_a_study_is_one_exact_sentence(tiny_text, old, new, sentence):
    assert old in tiny_text
    with pytest.raises(InputError) as caught:
        parse_study(tiny_text.replace(old, new, 1), "t.toml", "t", "smoke" if "scales" in new else None)
    assert re.fullmatch(sentence, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_scale_says_so(tiny_text):
    wrong = tiny_text.replace("train.steps = 4", "train.steps = -4")
    assert parse_study(wrong, "t.toml", "t").train.steps == 8
    with pytest.raises(InputError, match=r"t\.toml: scales\.smoke\.train\.steps: got -4; allowed: greater than 0"):
        parse_study(wrong, "t.toml", "t", "smoke")


def test_a_scale_overrides_by_path_and_keeps_the_rest(tiny, tiny_text):
    smoke = parse_study(tiny_text, "t.toml", "t", "smoke")
    assert (smoke.grid.seeds, smoke.train.steps, smoke.train.warmup) == (2, 4, tiny.train.warmup)
    with pytest.raises(InputError, match=r"t\.toml: the study has no scale 'full' \(known: small, smoke\)"):
        parse_study(tiny_text, "t.toml", "t", "full")


@pytest.mark.parametrize("name", sorted(study_files()))
def test_every_predefined_study_is_valid_at_every_scale_and_says_how_to_run_it(name):
    text = study_files()[name].read_text()
    assert f"stability run {name}" in text
    for scale in SCALES:
        assert load_study(name, scale).scale == scale


def test_an_unknown_study_gets_the_nearest_name(tmp_path):
    with pytest.raises(InputError, match="unknown study 'quickstar'; did you mean 'quickstart'"):
        load_study("quickstar")
    with pytest.raises(InputError, match=r"nowhere\.toml: there is no such file"):
        load_study(tmp_path / "nowhere.toml")


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200) | st.binary(max_size=100).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_a_study_or_one_sentence(text):
    with pytest.raises(InputError) as caught:
        parse_study(text, "t.toml", "t")
    assert str(caught.value).startswith("t.toml: ")


# --- identity --------------------------------------------------------------------------------------------------------


def ids(text: str) -> list[str]:
    return [run.id for run in runs_of(parse_study(text, "t.toml", "t"))]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps = 8", "steps = 8  # a comment\neps = 1e-8"),
        ("width = 8, depth = 1", "depth = 1, width = 8"),
        ("heads = 1", "heads = 1, depth = 1, mlp_ratio = 2"),
        ('name = "digits"', 'name = "digits"\nheld_out = 0.2\ncorruption = "fixed"'),
        ('bias = "-log B"', 'bias = "-log B"\nlog_scale = 2.302585092994046'),
        ('title = "Tiny"', 'title = "Another"'),
        ('text = "SigLIP\'s recall falls more slowly with noise"', 'text = "A reworded claim"'),
    ],
)
def test_comments_order_and_spelled_out_defaults_change_no_run(tiny_text, old, new):
    assert old in tiny_text
    assert ids(tiny_text.replace(old, new)) == ids(tiny_text)


@pytest.mark.parametrize(
    ("old", "new"),
    [("steps = 8", "steps = 9"), ("width = 8", "width = 9"), ("batches = 3", "batches = 4"), ('"-log B"', "-3.0")],
)
def test_what_decides_a_number_changes_the_runs(tiny_text, old, new):
    assert set(ids(tiny_text.replace(old, new))) != set(ids(tiny_text))


def test_more_seeds_keep_the_runs_that_are_there(tiny_text):
    assert set(ids(tiny_text)) < set(ids(tiny_text.replace("seeds = 3", "seeds = 4")))


def test_the_study_hash_covers_claims_and_ignores_comments(tiny_text):
    whole = parse_study(tiny_text, "t.toml", "t").hash
    assert parse_study(tiny_text + "# said\n", "t.toml", "t").hash == whole
    assert parse_study(tiny_text.replace("margin = 0.1", "margin = 0.2"), "t.toml", "t").hash != whole


@given(seeds=st.integers(1, 40), width=st.integers(2, 24))
def test_groups_hold_every_run_once_and_are_as_even_as_can_be(seeds, width):
    runs = [Run("clip", 8, "mismatch", 0.0, 0.1, seed, str(seed)) for seed in range(seeds)]
    groups = groups_of(runs, lambda run: width)
    sizes = [len(group.runs) for group in groups]
    assert [run for group in groups for run in group.runs] == runs
    assert max(sizes) <= width
    assert len(groups) == -(-seeds // width)


def test_the_tiny_study_is_a_full_grid(tiny, tiny_text):
    grid = tomllib.loads(tiny_text)["grid"]
    expected = len(grid["arms"]) * len(grid["batch_size"]) * len(grid["noise"]) * grid["seeds"]
    runs = runs_of(tiny)
    assert len(runs) == len({run.id for run in runs}) == expected


# --- measures with the scale of the loss -----------------------------------------------------------------------------

BETWEEN = 'measure = "recall_at_1"\ncontrast = "difference"\ncompare = ["siglip-log-b", "clip"]'


@pytest.mark.parametrize(
    "claim",
    [
        'measure = "gradient_norm"\ncontrast = "difference"',
        'measure = "gradient_norm"\ncontrast = "ratio"',
        'measure = "loss"\ncontrast = "difference"',
        'measure = "loss"\ntransform = "relative_to_chance"\ncontrast = "ratio"',
    ],
)
def test_a_measure_that_grows_with_the_loss_cannot_compare_losses_but_arms_of_one_loss(brief_text, claim):
    name = claim.partition('"')[2].partition('"')[0]
    refused = rf"claims\[0\]\.measure: '{name}' cannot compare the losses clip and siglip: it grows when the loss is"
    with pytest.raises(InputError, match=refused):
        parse_study(brief_text.replace(BETWEEN, f'{claim}\ncompare = ["siglip-log-b", "clip"]'), "t.toml", "t")
    same = brief_text.replace(BETWEEN, f'{claim}\ncompare = ["siglip-log-b", "siglip"]')
    parse_study(same.replace('arms = ["clip", "siglip-log-b"]', 'arms = ["siglip", "siglip-log-b"]'), "t.toml", "t")


def test_a_ranking_of_losses_by_such_a_measure_is_refused_and_what_is_relative_to_chance_is_free(brief_text):
    loss = BETWEEN.replace("recall_at_1", "loss")
    for free in (f'{loss}\ntransform = "relative_to_chance"', loss.replace('"difference"', '"divergence"')):
        parse_study(brief_text.replace(BETWEEN, free), "t.toml", "t")
    ranked = brief_text.replace("\n[scales.smoke]", '\n[[rankings]]\nmeasure = "loss"\n\n[scales.smoke]')
    with pytest.raises(InputError, match=r"rankings\[0\]\.measure: 'loss' cannot compare the losses clip and siglip"):
        parse_study(ranked, "t.toml", "t")
    own = brief_text.replace('loss = "siglip"', 'loss = "siglip_relative_bias"').replace('bias = "-log B"\n', "")
    other = own.replace(BETWEEN, 'measure = "loss"\ncontrast = "difference"\ncompare = ["siglip-log-b", "siglip"]')
    parse_study(other.replace('arms = ["clip", "siglip-log-b"]', 'arms = ["siglip", "siglip-log-b"]'), "t.toml", "t")
