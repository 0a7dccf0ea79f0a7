"""Studies: TOML files that are parsed and validated into frozen data. Nothing in a file can run code."""

from stability.study.claim_schema import Claim, Control, Published, Ranking
from stability.study.derive import command_of, with_loss
from stability.study.loader import find_study, load_study, parse_study, shipped_studies, study_files, with_looks
from stability.study.parameter_files import read_parameters_of
from stability.study.schema import (
    DEFAULT_SCALE,
    LATE,
    SCALES,
    Arm,
    ArmTrain,
    Options,
    Schedule,
    Shift,
    Start,
    Train,
    Tune,
)
from stability.study.setting_axes import Settings, combinations
from stability.study.starts import identity_of_start, scalar_starts
from stability.study.study import (
    OPTIMIZER_OPTIONS,
    Study,
    digest,
    modalities,
    optimizer_of,
    optimizer_options,
    train_table,
)
from stability.study.template import kinds, parse_options, study_path, write_study
from stability.study.tuning_grid import FIRST_TUNING_SEED, Setting, search_of, settings_of, tuning_measure

__all__ = [
    "DEFAULT_SCALE",
    "FIRST_TUNING_SEED",
    "LATE",
    "OPTIMIZER_OPTIONS",
    "SCALES",
    "Arm",
    "ArmTrain",
    "Claim",
    "Control",
    "Options",
    "Published",
    "Ranking",
    "Schedule",
    "Setting",
    "Settings",
    "Shift",
    "Start",
    "Study",
    "Train",
    "Tune",
    "combinations",
    "command_of",
    "digest",
    "find_study",
    "identity_of_start",
    "kinds",
    "load_study",
    "modalities",
    "optimizer_of",
    "optimizer_options",
    "parse_options",
    "parse_study",
    "read_parameters_of",
    "scalar_starts",
    "search_of",
    "settings_of",
    "shipped_studies",
    "study_files",
    "study_path",
    "train_table",
    "tuning_measure",
    "with_looks",
    "with_loss",
    "write_study",
]
