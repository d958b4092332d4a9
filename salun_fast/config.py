"""Configuration of a run: a YAML file, then ``key=value`` overrides, checked against a schema.

A schema is a dataclass with defaults, the ``COMMANDS`` whose run folders hold it, and the presets
that its ``preset`` names.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, overload

from salun_fast._extras import need

FILE = "config.yaml"
DEFAULT_FRACTION = 0.1
NARROW = 8.0
EXTRA_KEYS = ("command", "versions", "machine")  # facts beside the configuration in config.yaml


class Schema(Protocol):
    """What every configuration offers."""

    COMMANDS: ClassVar[tuple[str, ...]]
    __dataclass_fields__: ClassVar[dict[str, Any]]
    device: str

    @staticmethod
    def presets() -> Mapping[str, object]: ...


Config = TypeVar("Config", bound=Schema)


@dataclass
class RunConfig:
    """What ``train``, ``saliency``, ``unlearn`` and ``evaluate`` go by.

    data, root, download, channels, image_size: as ``data.load_images`` takes them.
    model, width: as ``models.build`` takes them; without a width the built-in models are narrow
    (``NARROW`` channels). weights: file of the model to start from.
    fraction or forget_class: the forget set (10 % at random when neither is given), drawn by
    ``split_seed`` (``seed`` when not given). method, preset: of ``unlearn_classifier``.
    train: fields of TrainSettings; unlearn: fields of ClassifierSettings. mask: file of a mask to
    use instead of measuring one. max_members: cap of the membership attack's fit.
    """

    COMMANDS: ClassVar[tuple[str, ...]] = ("train", "saliency", "unlearn")

    data: str = "digits"
    root: str | None = None
    download: bool = False
    channels: int | None = None
    image_size: int = 64
    model: str = "resnet18"
    width: float | None = None
    weights: str | None = None
    fraction: float | None = None
    forget_class: int | None = None
    split_seed: int | None = None
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    method: str = "salun"
    preset: str = "paper"
    mask: str | None = None
    max_members: int = 2000
    train: dict[str, Any] = field(default_factory=dict)
    unlearn: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def presets() -> Mapping[str, object]:
        """The settings that each preset stands for."""
        from salun_fast.methods.settings import PRESETS

        return PRESETS

    @property
    def task(self) -> str:
        return "class" if self.forget_class is not None else "random"

    @property
    def forget_seed(self) -> int:
        """What draws the forget set."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def forget_fraction(self) -> float | None:
        """The fraction to forget; None in class-wise unlearning."""
        if self.fraction is None and self.forget_class is None:
            return DEFAULT_FRACTION
        return self.fraction


@overload
def load(
    overrides: Sequence[str] = (), *, file: Path | None = None, base: None = None
) -> RunConfig: ...


@overload
def load(overrides: Sequence[str] = (), *, file: Path | None = None, base: Config) -> Config: ...


def load(
    overrides: Sequence[str] = (), *, file: Path | None = None, base: Schema | None = None
) -> Schema:
    """``base`` (default: RunConfig's defaults), then the YAML file, then ``key=value`` pairs.

    The class of ``base`` is the schema. Raises ValueError naming an unknown key (with the closest
    known one) or a value of the wrong type, FileNotFoundError for a missing file.
    """
    omegaconf = need("omegaconf", "reading the configuration")
    given = base if base is not None else RunConfig()
    config = omegaconf.OmegaConf.structured(given)
    try:
        if file is not None:
            config = omegaconf.OmegaConf.merge(config, _read(file))
        changes = parse_overrides(overrides)
        if "preset" in changes:
            _leave_preset(config, given.presets())
        config = omegaconf.OmegaConf.merge(config, changes)
        loaded: Schema = omegaconf.OmegaConf.to_object(config)
    except omegaconf.errors.OmegaConfBaseException as error:
        raise ValueError(_explain(error, [f.name for f in fields(given)])) from error
    return loaded


def parse_overrides(overrides: Sequence[str]) -> Any:
    """``["train.lr=0.1", ...]`` as an OmegaConf mapping."""
    for pair in overrides:
        key, separator, _ = pair.partition("=")
        if not separator or not key.strip():
            raise ValueError(f"expected an override of the form key=value, found {pair!r}")
    omegaconf = need("omegaconf", "reading the configuration")
    try:
        return omegaconf.OmegaConf.from_dotlist(list(overrides))
    except Exception as error:  # the YAML reader raises its own classes
        given = " ".join(overrides)
        raise ValueError(f"a value in {given!r} is not valid YAML: {_first_line(error)}") from error


def override_mapping(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``values`` with ``key=value`` pairs applied; top-level keys must be known."""
    omegaconf = need("omegaconf", "reading the configuration")
    changes = parse_overrides(overrides)
    for key in changes:
        if key not in values:
            raise ValueError(_unknown(str(key), list(values)))
    merged = omegaconf.OmegaConf.merge(omegaconf.OmegaConf.create(values), changes)
    plain: dict[str, Any] = omegaconf.OmegaConf.to_container(merged)
    return plain


def to_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML, keys in their order."""
    omegaconf = need("omegaconf", "writing the configuration")
    text: str = omegaconf.OmegaConf.to_yaml(omegaconf.OmegaConf.create(values))
    return text


def read_run(path: Path, schema: type[Config]) -> Config:
    """The configuration that a run folder's config.yaml holds."""
    return load(file=path, base=schema())


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file of key: value lines as plain values."""
    omegaconf = need("omegaconf", "reading the configuration")
    plain: dict[str, Any] = omegaconf.OmegaConf.to_container(_read(file, facts=True))
    return plain


def _read(file: Path, *, facts: bool = False) -> Any:
    """facts: keep what config.yaml holds beside the configuration."""
    omegaconf = need("omegaconf", "reading the configuration")
    if not file.is_file():
        raise FileNotFoundError(f"configuration file {file} does not exist")
    try:
        values = omegaconf.OmegaConf.load(file)
    except Exception as error:  # the YAML reader raises its own classes
        raise ValueError(f"configuration file {file} is not valid YAML: {error}") from error
    if not omegaconf.OmegaConf.is_dict(values):
        raise ValueError(f"configuration file {file} must hold key: value lines")
    for key in () if facts else EXTRA_KEYS:
        values.pop(key, None)
    return values


def _explain(error: Exception, known: list[str]) -> str:
    """OmegaConf's several lines as one; unknown keys by name."""
    key = str(getattr(error, "full_key", "") or "")
    if type(error).__name__ in ("ConfigKeyError", "ConfigAttributeError") and key:
        return _unknown(key, known)
    first = _first_line(error)
    return f"configuration key {key!r}: {first}" if key else f"configuration: {first}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _leave_preset(config: Any, presets: Mapping[str, object]) -> None:
    """Take out of ``unlearn`` what only spells out a preset that is about to change, as the
    config.yaml of a run does: two presets are never mixed."""
    preset = str(config.preset)
    for name, value in vars(presets[preset]).items() if preset in presets else ():
        differs = any(getattr(other, name) != value for other in presets.values())
        if differs and name in config.unlearn and config.unlearn[name] == value:
            del config.unlearn[name]


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown configuration key {key!r}; {meant}known: {', '.join(known)}"
