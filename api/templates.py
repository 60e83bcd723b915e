"""Templates: a folder of YAML files beside the built-in ones, and how a request becomes a task by one of them."""

import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError

from messages.names import random_id
from messages.statuses import BackendKind, Readiness
from messages.tasks import WORKFLOW_REVISION, Repository, TaskInput, TaskRequest
from messages.templates import Template, agent_preset
from messages.timeouts import resolve_provision_timeout, runtime_warning
from messages.validation import first_violation

BUILTIN_FOLDER = Path(__file__).parent / "builtin_templates"
MAX_TEMPLATE_BYTES = 256 * 1024

_MERGE_TAG = "tag:yaml.org,2002:merge"

_Signature = tuple[tuple[str, int, int], ...]


class TemplateError(Exception):
    """The request or a template cannot be used; the text says why and what to do."""


def no_template(name: str) -> str:
    """Return how the text of an error begins, or goes on, where there is no template of that name."""
    return f"there is no template {name[:100]!r}"


class TemplateSummary(BaseModel):
    """A template in a list; ``warning`` says what is doubtful about it."""

    name: str
    backend: BackendKind
    runtime: str | None
    readiness: Readiness
    warning: str | None


class TemplateList(BaseModel):
    """Every usable template, and by file why others are not usable."""

    templates: list[TemplateSummary]
    broken: dict[str, str]


class TemplateDetails(BaseModel):
    """A template, whole, and the provision timeout that it gets in this process's environment."""

    template: dict[str, Any]
    readiness: Readiness
    provision_timeout_seconds: int
    provision_timeout_rule: str
    warning: str | None


class _Loader(yaml.SafeLoader):
    """Reads YAML, and refuses a key that a mapping has twice, of which the last would count without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping. Its keys are looked at here, before those that it merges in (``<<``) join them."""
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE_TAG:
                continue
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if first := seen.get(name):
                where = f"line {line}" if first == line else f"lines {first} and {line}"
                raise TemplateError(f"the key {name[1][:100]!r} is there twice, in {where}; keep one")
            seen[name] = line
        return node


class TemplateFolder:
    """The templates there are. A file that changes is read anew; one that is broken spoils no other."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._signature: _Signature | None = None
        self._templates: dict[str, Template] = {}
        self._broken: dict[str, str] = {}
        self._called: dict[str, set[str]] = {}

    def all(self) -> list[Template]:
        """Return every usable template, by name."""
        templates, _ = self._current()
        return [templates[name] for name in sorted(templates)]

    def broken(self) -> dict[str, str]:
        """Return, by file, why a template cannot be used."""
        return dict(self._current()[1])

    def find(self, name: str) -> Template:
        """Return the template called ``name``; raise :class:`TemplateError` naming what there is."""
        templates, broken = self._current()
        if name in templates:
            return templates[name]
        for file, why in sorted(broken.items()):
            if name in self._called.get(file, ()):
                raise TemplateError(f"the template {name[:100]!r} cannot be used: {file}: {why}")
        text = f"{no_template(name)}; known: {', '.join(sorted(templates))}"
        if broken:
            files = "1 file" if len(broken) == 1 else f"{len(broken)} files"
            text += f"; {files} cannot be used: taskrunner templates list"
        raise TemplateError(text)

    def _current(self) -> tuple[dict[str, Template], dict[str, str]]:
        with self._lock:
            try:
                files = list(self._files())
                signature = tuple(_mark(file) for file in files)
            except OSError as e:
                raise TemplateError(
                    f"the templates in {self._folder} cannot be read ({e.strerror}); check TASKRUNNER_TEMPLATES"
                ) from e
            if signature != self._signature:
                self._read(files)
                self._signature = signature
            return self._templates, self._broken

    def _files(self) -> Iterator[Path]:
        yield from sorted(BUILTIN_FOLDER.glob("*.yaml"))
        if self._folder is not None:
            yield from sorted(path for path in self._folder.iterdir() if path.suffix in {".yaml", ".yml"})

    def _read(self, files: list[Path]) -> None:
        self._templates, self._broken, self._called = {}, {}, {}
        for file in files:
            self._called[file.name] = {file.stem}
            try:
                content = _content(file)
                self._called[file.name].add(str(content.get("name")))
                template = _validated(content)
                if template.name in self._templates:
                    raise TemplateError(f"the name {template.name!r} is taken by another template; choose another")
            except TemplateError as e:
                self._broken[file.name] = str(e)
            else:
                self._templates[template.name] = template


def _mark(file: Path) -> tuple[str, int, int]:
    """Return what changes when a file does; for one that cannot be looked at, its name alone."""
    try:
        stat = file.stat()
    except OSError:
        return str(file), 0, 0
    return str(file), stat.st_mtime_ns, stat.st_size


def _content(file: Path) -> dict[Any, Any]:
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_TEMPLATE_BYTES + 1)
        if len(raw) > MAX_TEMPLATE_BYTES:
            raise TemplateError(f"larger than {MAX_TEMPLATE_BYTES} bytes")
        content: object = yaml.load(raw, _Loader)  # noqa: S506 (a SafeLoader)
    except OSError as e:
        raise TemplateError(f"cannot be read: {e.strerror}") from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise TemplateError(f"not valid YAML: {' '.join(str(e).split())[:300]}") from e
    if not isinstance(content, dict):
        raise TemplateError("not a mapping; a template starts with a line like: name: my-template")
    return cast(dict[Any, Any], content)


def _validated(content: dict[Any, Any]) -> Template:
    try:
        template = Template.model_validate(content)
        template.check_as_written()
    except ValidationError as e:
        raise TemplateError(str(first_violation(e))) from None
    except ValueError as e:
        raise TemplateError(str(e)) from None
    return template


def list_of(templates: TemplateFolder) -> TemplateList:
    """Return what is shown of all templates; raises :class:`TemplateError` where their folder cannot be read."""
    summaries = [
        TemplateSummary(
            name=template.name,
            backend=template.backend,
            runtime=template.runtime,
            readiness=template.effective_readiness,
            warning=runtime_warning(template),
        )
        for template in templates.all()
    ]
    return TemplateList(templates=summaries, broken=templates.broken())


def details_of(templates: TemplateFolder, name: str, environ: Mapping[str, str]) -> TemplateDetails:
    """Return what is shown of the template ``name`` in an environment; raise :class:`TemplateError`."""
    template = templates.find(name)
    timeout = resolve_provision_timeout(template, environ)
    return TemplateDetails(
        template=template.model_dump(mode="json"),
        readiness=template.effective_readiness,
        provision_timeout_seconds=timeout.seconds,
        provision_timeout_rule=timeout.rule,
        warning=runtime_warning(template),
    )


def resolve(request: TaskRequest, templates: TemplateFolder, *, host_id: str) -> TaskInput:
    """Return the task that a request asks for: its template, with what the request says in place of the template's.

    Ids that the request does not give are made here. A path, or a file:// URL, without a host is on ``host_id``.
    Raises :class:`TemplateError` for what cannot run as asked.
    """
    template = _template(request, templates)
    repository = _repository(request, template.backend, host_id)
    if request.ref is not None and repository is None:
        raise TemplateError("a ref was given without a repository; give the repository too, or leave the ref out")
    if lost := template.nobody_could_give(request.env):
        raise TemplateError(
            f"env: the image of template {template.name!r} is without our agent, so nobody could give {', '.join(lost)}"
            " to what runs there"
        )
    if template.push and (repository is None or repository.url is None):
        raise TemplateError(f"template {template.name!r} says push, which needs a repository by URL; give one")
    return TaskInput(
        task_id=request.id or random_id("t"),
        workspace_id=random_id("w", 10),
        prompt=request.prompt,
        template=template,
        repository=repository,
        ref=request.ref,
        env_names=tuple(sorted(request.env)),
        revision=WORKFLOW_REVISION,
    )


def _template(request: TaskRequest, templates: TemplateFolder) -> Template:
    if request.template is not None:
        name = request.template
    elif request.backend is not None:
        name = request.backend.value
    else:
        name = BackendKind.WORKTREE.value if request.repository else BackendKind.LOCAL.value
    changes: dict[str, Any] = {}
    if request.backend is not None:
        changes["backend"] = request.backend
    if request.agent is not None:
        try:
            changes["agent"] = agent_preset(request.agent)
        except ValueError as e:
            raise TemplateError(str(e)) from None
    if request.timeout is not None:
        if request.timeout <= timedelta(0):
            raise TemplateError("timeout: has to be positive, for example 90s or 2h")
        changes["session_timeout"] = request.timeout
    if request.template is None and request.backend is not None and name not in {t.name for t in templates.all()}:
        name = BackendKind.LOCAL.value  # no template of its own: validation below says which backends there are
    template = templates.find(name)
    try:
        return _validated({**template.model_dump(), **changes}) if changes else template
    except TemplateError as e:
        # Who named a template has to be told which one lacks something; else it is the request that is wrong.
        raise TemplateError(f"template {name!r}: {e}" if request.template is not None else str(e)) from None


def _repository(request: TaskRequest, backend: BackendKind, host_id: str) -> Repository | None:
    repository = request.repository
    if repository is None:
        if backend is BackendKind.WORKTREE:
            raise TemplateError("the backend 'worktree' needs a repository; give one, or use the backend 'local'")
        return None
    if repository.host or not repository.is_on_host:
        return repository
    return repository.model_copy(update={"host": host_id})
