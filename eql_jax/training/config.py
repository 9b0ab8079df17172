"""Loading, checking and saving of configs: a Python file with `get_config()` plus `--config.a.b=value` overrides.

A key that the base config lacks is an error that names the nearest key, in a config file as on the command line;
values are checked before anything slow starts.
"""

import ast
import difflib
import importlib.metadata
import importlib.util
import json
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from eql_jax.data.files import as_path
from eql_jax.training.batch_scaling import apply_linear_rule
from eql_jax.training.config_values import type_faults, value_faults
from eql_jax.training.errors import ConfigError

FindFaults = Callable[[ConfigDict], Sequence[str]]
OVERRIDE = re.compile(r"--?(?:no)?config\.(?P<key>[^=]+)(?:=(?P<value>.*))?", re.DOTALL)
# Fields that detectors' configs of older runs lack, with the value that leaves those runs as they were; those of
# ADDED_TO_ALL are lacked by other tasks' as well.
ADDED_FIELDS = {
    "data.scale_jitter": (),
    "data.crop_size": (1024, 1024),
    "data.photometric": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
    "data.copy_paste": {
        "probability": 0.0,
        "source": "batch",
        "max_objects": 10,
        "scale": (1.0, 1.0),
        "class_power": 0.5,
    },
    "data.fast_pixels": False,
    "data.extra_sets": (),
    "model.architecture": "fpn",
    "model.with_mask": True,
    "model.backbone.kind": "resnet",
    "model.backbone.stem_width": 0,
    "model.backbone.groups": 1,
    "model.backbone.width_per_group": 0,
    "model.backbone.deform_stages": (),
    "model.backbone.deform_modulated": True,
    "model.backbone.deform_groups": 1,
    "model.box_head.loss_options": {},
    "model.box_head.classifier": "linear",
    "model.box_head.cosine_temperature": 20.0,
    "model.box_head.class_multiple": 1,
    "model.box_head.num_convs": 0,
    "model.box_head.box_loss": "smooth_l1",
    "model.box_head.box_loss_beta": 0.0,
    "model.box_head.conv_dim": 256,
    "model.box_head.norm": "none",
    "model.mask_head.norm": "none",
    "model.cascade": {"ious": (), "box_weights": (10.0, 20.0, 30.0)},
    "model.test.norcal_gamma": 0.0,
    "eval.image_count_groups": 0,
    "eval.tta": {"shorter_sides": (), "longest_side": 4000, "flip": True, "masks": True},
    "model.rpn.round_anchors": False,
    "model.roi.aligned": True,
    "model.roi.max_samples": 64,
    "train.reference_batch_size": 0,
    "train.remat": False,
    "train.reduce_dtype": "compute",
    "mesh.fsdp": False,
    "train.steps_per_call": 1,
    "data.engine": "threads",
    "eval.ap_fixed": False,
    "eval.ap_pool": False,
    "eval.boundary": False,
    "eval.backend": "fast",
    "checkpoint.keep_every": 0,
}
# The same for configs of other tasks.
ADDED_FIELDS_OF_OTHERS = {
    key: ADDED_FIELDS[key]
    for key in ("train.steps_per_call", "train.reduce_dtype", "mesh.fsdp", "checkpoint.keep_every")
}
# Sections whose keys are arguments of a function or fields of a class, which checks them itself
FREE_SECTIONS = ("data.supershapes", "model.box_head.loss_options", "loss.options")
# {name of a loss: its options}
OPTIONS_OF = {"model.box_head.loss": "model.box_head.loss_options", "loss.name": "loss.options"}
DETECTION = "detection"  # the task of configs without a field `task`


def load_config(
    source: str | Path | ConfigDict,
    overrides: Sequence[str] = (),
    *,
    base: ConfigDict,
    find_faults: FindFaults = value_faults,
) -> ConfigDict:
    """Loads a config, applies command-line overrides, checks the result and scales it to its batch size.

    The scaling is `batch_scaling.apply_linear_rule`, which leaves alone what the overrides name.

    Args:
        source: a Python file with `get_config()` ('file.py:text' calls `get_config('text')`), or the config.json of a
            workdir, or a config that is loaded already.
        overrides: command-line words, '--config.a.b=value' or '--config.a.b', 'value'; '--noconfig.a.b' is False.
        base: the config that has every field; a key beside it is an error.
        find_faults: config -> one line for every value that is not allowed. Default: that of detectors.

    Returns:
        The checked config, locked.

    Raises:
        ConfigError: no such file, a faulty file, an unknown key, a value of the wrong type or out of range.
    """
    config = source.copy_and_resolve_references() if isinstance(source, ConfigDict) else _read(source)
    config.unlock()
    overrides = list(overrides)
    given = {match["key"] for word in overrides if (match := OVERRIDE.fullmatch(word))}
    _check_known(config, base, "the config" if isinstance(source, ConfigDict) else str(source))
    _check_overrides(config, overrides)
    _drop_options_of_other_losses(config, overrides)
    overrides = _apply_free(config, overrides)
    try:
        holder = flags.FlagValues()
        argv = ["train.py", *overrides]
        config_flags.DEFINE_config_dict("config", config, flag_values=holder, sys_argv=argv)
        rest = holder(argv)[1:]
    except (flags.Error, TypeError, ValueError) as e:
        raise ConfigError(f"an override on the command line does not fit: {e}") from e
    if rest:
        raise ConfigError(f"unexpected words on the command line: {' '.join(rest)}; overrides are --config.key=value")
    config = holder["config"].value
    validate(config, base=base, find_faults=find_faults)
    if apply_linear_rule(config, given=given):
        validate(config, base=base, find_faults=find_faults)  # steps may have become equal
    return config.lock()


def task_of(source: str | Path | ConfigDict) -> str:
    """What a config (see `load_config`) is for: its field `task`; 'detection' for those without one.

    Raises:
        ConfigError: no such file, or a faulty one.
    """
    return (source if isinstance(source, ConfigDict) else _read(source)).get("task", DETECTION)


def validate(config: ConfigDict, *, base: ConfigDict, find_faults: FindFaults = value_faults) -> None:
    """Checks keys and types against `base`, then choices, ranges and what must fit together.

    Raises:
        ConfigError: listing every fault found, one a line.
    """
    _check_known(config, base, "the config")
    faults = type_faults(dict(leaves(config)), dict(leaves(base))) or find_faults(config)
    if faults:
        raise ConfigError("\n".join(["the config has faulty values:", *(f"  {f}" for f in faults)]))


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote; JSON's lists become tuples again, and fields added since it was written get the
    values that mean what was done then."""
    config = ConfigDict(_tuples(json.loads(text)))
    added = ADDED_FIELDS if task_of(config) == DETECTION else ADDED_FIELDS_OF_OTHERS
    for key, value in added.items():
        section, _, name = key.rpartition(".")
        if _has(config, section) and name not in (group := _get(config, section)):
            group[name] = value
    return config


def to_json(config: ConfigDict) -> str:
    """Indented JSON with sorted keys; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """{'a.b': (old value, new value)} of all leaves that differ; a missing one counts as '(absent)'."""
    before, after = (dict(leaves(from_json(to_json(c)))) for c in (old, new))
    keys = sorted(before.keys() | after.keys())
    pairs = {k: (before.get(k, "(absent)"), after.get(k, "(absent)")) for k in keys}
    return {k: pair for k, pair in pairs.items() if pair[0] != pair[1]}


def versions() -> dict[str, Any]:
    """What a run ran on: Python, packages (None: not installed), platform, devices, and the git commit if any."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    names = ("eql_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow", "tensorflow-cpu")
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["devices"] = [f"{d.platform}:{d.device_kind}" for d in jax.devices()]
    found["processes"] = jax.process_count()
    found["git_commit"] = _git_commit()
    return found


def versions_json() -> str:
    """`versions()` as indented JSON."""
    return json.dumps(versions(), indent=2) + "\n"


# ---------------------------------------------------------------------------------------------------- reading
def _read(source: str | Path) -> ConfigDict:
    path, colon, argument = str(source).partition(".py:")
    path = as_path(path + ".py" if colon else path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"config file {path} does not exist{hint}")
    if path.suffix == ".json":
        try:
            return from_json(path.read_text())
        except (ValueError, TypeError) as e:
            raise ConfigError(f"config file {path} is not the JSON of a config: {e}") from e
    try:
        spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(argument) if colon else module.get_config()
    except ConfigError:
        raise
    except Exception as e:  # whatever a config file may do wrong; the cause keeps the traceback
        raise ConfigError(f"config file {path} fails: {type(e).__name__}: {e}") from e
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config() returned {type(config).__name__}; expected ConfigDict")
    return config


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ('a.b', value) of every field that is not a group of fields."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _get(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


# ---------------------------------------------------------------------------------------------------- unknown keys
def _has(config: ConfigDict, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return False
        config = config[part]
    return True


def _is_free(key: str) -> bool:
    return any(key.startswith(f"{section}.") for section in FREE_SECTIONS)


def _suggestion(key: str, config: ConfigDict) -> str:
    """'; did you mean ...?' with the nearest full key, or the keys whose last part is nearest."""
    known = [k for k, _ in leaves(config)]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not near:
        last = {}
        for k in known:
            last.setdefault(k.rpartition(".")[2], []).append(k)
        near = [k for name in difflib.get_close_matches(key.rpartition(".")[2], last, n=2) for k in last[name]]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def _check_known(config: ConfigDict, base: ConfigDict, where: str) -> None:
    unknown = [k for k, _ in leaves(config) if not _has(base, k) and not _is_free(k)]
    if unknown:
        lines = [f"  {k}{_suggestion(k, base)}" for k in unknown]
        raise ConfigError("\n".join([f"{where} sets keys that {_base_file(base)} does not have:", *lines]))
    missing = [k for k, _ in leaves(base) if not _has(config, k)]
    if missing:
        raise ConfigError(
            f"{where} lacks {', '.join(missing)}; start from get_config() of {_base_file(base)}, which has every field"
        )


def _base_file(base: ConfigDict) -> str:
    return "configs/base.py" if task_of(base) == DETECTION else f"configs/{base.task}/base.py"


def _check_overrides(config: ConfigDict, overrides: Sequence[str]) -> None:
    for word in overrides:
        match = OVERRIDE.fullmatch(word)
        if match is None:
            if word.startswith("-") and not _is_number(word):
                raise ConfigError(f"unknown flag {word}; config fields are set with --config.key=value")
            continue
        key = match["key"]
        if _is_free(key):
            continue
        if not _has(config, key):
            raise ConfigError(f"--config.{key}: the config has no such key{_suggestion(key, config)}")
        if isinstance(_get(config, key), ConfigDict):
            fields = ", ".join(f"{key}.{k}" for k in _get(config, key)) or "(none)"
            raise ConfigError(f"--config.{key} is a group of fields, not one; set one of {fields}")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _drop_options_of_other_losses(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Where the command line names another loss than the config, the config's options are not for it."""
    for i, word in enumerate(overrides):
        match = OVERRIDE.fullmatch(word)
        if match is None or match["key"] not in OPTIONS_OF:
            continue
        name = match["value"] if match["value"] is not None else "".join(overrides[i + 1 : i + 2])
        if name != _get(config, match["key"]):
            section, _, field = OPTIONS_OF[match["key"]].rpartition(".")
            _get(config, section)[field] = ConfigDict()


def _apply_free(config: ConfigDict, overrides: list[str]) -> list[str]:
    """Sets the overrides of free sections, whose keys need not exist yet; returns the others."""
    rest = []
    words = iter(overrides)
    for word in words:
        match = OVERRIDE.fullmatch(word)
        if match is None or not _is_free(match["key"]):
            rest.append(word)
            continue
        text = match["value"] if match["value"] is not None else next(words, "")
        section, _, key = match["key"].rpartition(".")
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
        with _get(config, section).unlocked() as fields:
            # A loss says itself of which type its options are.
            if section == "data.supershapes" and key in fields and type(fields[key]) is not type(value):
                raise ConfigError(f"--config.{match['key']} is {value!r}; expected {type(fields[key]).__name__}")
            with fields.ignore_type():
                fields[key] = value
    return rest


def _git_commit() -> str | None:
    """Commit of the checkout this package lies in, '+changes' when files differ from it; None outside of one."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
