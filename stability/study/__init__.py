"""A study: one TOML file, validated into frozen data. Nothing in it can run code."""

from stability.study.comparing import with_loss
from stability.study.reading import find_study, load_study, parse_study, shipped_studies, study_files, with_looks
from stability.study.schema import (
    DEFAULT_SCALE,
    DOUBLING,
    LATE,
    SCALES,
    Arm,
    ArmTrain,
    Claim,
    Options,
    Published,
    Ranking,
    Schedule,
    Study,
    Train,
    Tune,
    digest,
    modalities,
)
from stability.study.searching import FIRST_TUNING_SEED, Setting, search_of, settings_of, tuning_measure
from stability.study.template import kinds, parse_options, study_path, write_study

__all__ = [
    "DEFAULT_SCALE",
    "DOUBLING",
    "FIRST_TUNING_SEED",
    "LATE",
    "SCALES",
    "Arm",
    "ArmTrain",
    "Claim",
    "Options",
    "Published",
    "Ranking",
    "Schedule",
    "Setting",
    "Study",
    "Train",
    "Tune",
    "digest",
    "find_study",
    "kinds",
    "load_study",
    "modalities",
    "parse_options",
    "parse_study",
    "search_of",
    "settings_of",
    "shipped_studies",
    "study_files",
    "study_path",
    "tuning_measure",
    "with_looks",
    "with_loss",
    "write_study",
]
