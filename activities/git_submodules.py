"""What an agent changed inside the submodules of its checkout. None of it is saved, so that it has to be said."""

import asyncio
from pathlib import Path

from activities.files import is_real_folder
from activities.git import Git, lines_of
from activities.git_results import GITLINK, Place

_WAY = "only what is pushed to a submodule's own remote stays"


async def left_in_submodules(place: Place, *, base: str, commit: str) -> list[str]:
    """Return, in a sentence for each submodule of ``base`` that ``commit`` still has, what is in it and nowhere else.

    What its remote has, as far as the submodule knows, is no loss, and of an empty folder there is nothing to say.
    """
    before = await _submodules(place.git, base)
    after = await _submodules(place.git, commit) if before else {}
    texts: list[str] = []
    for path in sorted(before.keys() & after.keys()):
        if left := await _left_in(place, path, before[path], after[path]):
            name = path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            texts.append(f"submodule {name}: {left}; {_WAY}")
    return texts


async def _submodules(git: Git, commit: str) -> dict[str, str]:
    """Return the commit of each submodule that ``commit`` has, by its path."""
    listed = (await git.run("ls-tree", "-r", "-z", "--full-tree", commit)).split("\0")
    entries = (line.partition("\t") for line in listed if line.startswith(GITLINK))
    return {path: kind.split()[2] for kind, _, path in entries}


async def _left_in(place: Place, path: str, before: str, after: str) -> str:
    folder = place.checkout / path
    if not await asyncio.to_thread(_has_files, place.checkout, folder):
        return ""
    git = await _git_of(place, path, folder)
    status = await git.ask("status", "--porcelain") if git else None
    if git is None or status is None:
        return "whether its files were changed cannot be told, as its git folder is not usable"
    known = [f"^{before}"] if await git.commit_of(before) else []
    commits = lines_of(await git.ask("rev-list", "HEAD", "--branches", *known, "--not", "--remotes") or "")
    parts = ["uncommitted changes"] if status else []
    if commits:
        count = f"{len(commits)} commit{'' if len(commits) == 1 else 's'} that its remote may not have"
        parts.append(f"{count}, one of which the result refers to" if after in commits else count)
    return " and ".join(parts)


def _has_files(checkout: Path, folder: Path) -> bool:
    """Tell whether anything is in the folder, and this is no way, through a link of the agent's, to another one."""
    return (
        is_real_folder(folder)
        and folder.resolve() == checkout.resolve() / folder.relative_to(checkout)
        and any(folder.iterdir())
    )


async def _git_of(place: Place, path: str, folder: Path) -> Git | None:
    """Return git in a submodule, which knows nothing of the repository around it; None where that cannot be."""
    git = Git(cwd=folder, env=place.git.env, keep_open=place.git.keep_open)
    if not (folder / ".git").exists():  # in a copy, which has no files that lead to elsewhere
        own = place.git_dir / "modules" / path  # called like its path, unless somebody wanted otherwise
        if not is_real_folder(own):
            return None
        git = git.at(GIT_DIR=own, GIT_WORK_TREE=folder)
    # Where its ``.git`` is broken, git finds the repository around it.
    return git if await git.ask("rev-parse", "--show-prefix") == "" else None
