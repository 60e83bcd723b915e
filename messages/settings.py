"""The environment, read once into one typed object."""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, field_validator

from messages.defaults import default_home
from messages.names import HOST_PATTERN
from messages.validation import first_violation


class SettingsError(Exception):
    """The environment cannot be used; the text names the variable and what it should be."""


def _default_host_id() -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).strip("-._")[:100] or "localhost"


class Settings(BaseModel):
    """Every ``TASKRUNNER_*`` variable. A variable that is set but empty counts as not set.

    home: state of the embedded stack. api_url: where the API is reached; None where the user did not say.
    public_url: how workspaces reach the API, by default as everybody does. database_url: PostgreSQL, in libpq's form.
    templates: a folder of template files beside the built-in ones. host_id: this machine's name among the workers.
    keys_file: the installation's keys, by default in home. temporal_bin: the Temporal CLI's path.
    """

    model_config = ConfigDict(frozen=True, validate_default=True)

    home: Path = Field(default_factory=default_home)
    api_url: str | None = None
    api_token: SecretStr | None = None
    public_url: str | None = None
    database_url: SecretStr | None = None
    templates: Path | None = None
    host_id: Annotated[str, Field(pattern=HOST_PATTERN)] = Field(default_factory=_default_host_id)
    keys_file: Path | None = None
    temporal_bin: Path | None = None

    @classmethod
    def from_environment(cls, instead: Mapping[str, object] | None = None) -> Self:
        """Return what the environment says; ``instead`` goes before it. Raises pydantic's ``ValidationError``."""
        named = {name: os.environ.get(f"TASKRUNNER_{name.upper()}") for name in cls.model_fields}
        return cls.model_validate({name: value for name, value in named.items() if value} | dict(instead or {}))

    @field_validator("home", "templates", "keys_file", "temporal_bin")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        try:
            return path.expanduser().absolute() if path else None
        except RuntimeError:
            raise ValueError(
                f"{str(path)!r} names the home of a user that there is not; write the whole path"
            ) from None

    @field_validator("api_token")
    @classmethod
    def _fits_into_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not re.fullmatch(r"[!-~]+", token.get_secret_value()):
            raise ValueError("a token is printable ASCII without spaces and newlines, and this one is not; correct it")
        return token

    @field_validator("api_url", "public_url")
    @classmethod
    def _http_url(cls, url: str | None) -> str | None:
        if url is not None:
            parts = TypeAdapter(AnyHttpUrl).validate_python(url)
            if parts.username or parts.password:  # they would be sent in place of our token
                raise ValueError("take the user and the password out of it; set TASKRUNNER_API_TOKEN in their place")
            return url.rstrip("/")
        return None

    @property
    def host_names(self) -> frozenset[str]:
        """The names under which the API is reached, as far as they were given."""
        urls = (self.public_url, self.api_url)
        return frozenset(name for url in urls if url and (name := urlsplit(url).hostname))

    @property
    def keys_path(self) -> Path:
        """Where the keys file is."""
        return self.keys_file or self.home / "keys.json"


def read_settings() -> Settings:
    """Read the environment; raise :class:`SettingsError` with one line for a value that cannot be used."""
    try:
        return Settings.from_environment()
    except RuntimeError:  # of the default
        raise SettingsError("TASKRUNNER_HOME: no home folder of yours can be found; set it to a folder") from None
    except ValidationError as e:
        first = first_violation(e)
        raise SettingsError(f"TASKRUNNER_{first.field.upper()}: {first.text}") from None
