"""What comes out of a container is unpacked on the host without believing any of it."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from activities.backends import container_files
from activities.backends.container_files import Owner, UnusableArchive, pack, unpack_tree, user_ids


def archive(*entries: Callable[[tarfile.TarFile], None]) -> list[bytes]:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as made:
        for add in (folder("checkout"), *entries):
            add(made)
    data = target.getvalue()
    return [data[at : at + 700] for at in range(0, len(data), 700)]


def folder(name: str) -> Callable[[tarfile.TarFile], None]:
    return _entry(name, tarfile.DIRTYPE)


def link(name: str, target: str) -> Callable[[tarfile.TarFile], None]:
    return _entry(name, tarfile.SYMTYPE, target)


def hard_link(name: str, target: str) -> Callable[[tarfile.TarFile], None]:
    return _entry(name, tarfile.LNKTYPE, target)


def _entry(name: str, kind: bytes, target: str = "") -> Callable[[tarfile.TarFile], None]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = kind, target, 0o755
    return lambda made: made.addfile(entry)


def file(name: str, content: bytes = b"x", mode: int = 0o644) -> Callable[[tarfile.TarFile], None]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.uid = len(content), mode, 4711
    return lambda made: made.addfile(entry, io.BytesIO(content))


def test_files_folders_and_links_come_out_as_ours(tmp_path: Path) -> None:
    target = tmp_path / "checkout"
    unpack_tree(
        archive(
            folder("checkout/a"),
            file("checkout/a/run", b"#!", 0o4755),
            hard_link("checkout/same", "checkout/a/run"),
            link("checkout/away", "/etc/passwd"),
        ),
        target,
    )
    assert (target / "a/run").read_bytes() == (target / "same").read_bytes() == b"#!"
    assert (target / "a/run").stat().st_mode & 0o7777 == 0o711
    assert (target / "a/run").stat().st_uid == target.stat().st_uid
    assert (target / "away").readlink() == Path("/etc/passwd")


@pytest.mark.parametrize(
    "entries",
    [
        [file("checkout/../../escaped")],
        [file("/checkout/escaped")],
        [link("checkout/out", "{outside}"), file("checkout/out/escaped")],
        [link("checkout/out", "{outside}"), folder("checkout/out/escaped")],
        [link("checkout/out", "{outside}"), hard_link("checkout/read", "checkout/out/secret")],
        [hard_link("checkout/read", "checkout/../../outside/secret")],
    ],
    ids=["dots", "absolute", "through-a-link", "folder-through-a-link", "hard-link-through-a-link", "hard-link-out"],
)
def test_nothing_is_written_or_read_outside(tmp_path: Path, entries: list[Callable[[tarfile.TarFile], None]]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    entries = [
        link("checkout/out", str(outside)) if index == 0 and len(entries) > 1 else entry
        for index, entry in enumerate(entries)
    ]
    (tmp_path / "in").mkdir()
    with pytest.raises(UnusableArchive):
        unpack_tree(archive(*entries), tmp_path / "in/checkout")
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert not (tmp_path / "escaped").exists()


def test_other_names_of_a_file_count_as_much_as_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a copy on the host, although an archive holds nothing but its name."""
    monkeypatch.setattr(container_files, "MAX_CHECKOUT_BYTES", 3000)
    names = [hard_link(f"checkout/same-{number}", "checkout/large") for number in range(9)]
    with pytest.raises(UnusableArchive, match="larger than"):
        unpack_tree(archive(file("checkout/large", b"x" * 1000), *names), tmp_path / "checkout")
    assert sum(path.stat().st_size for path in (tmp_path / "checkout").iterdir()) <= 3000


def test_what_would_lead_git_astray_stays_behind(tmp_path: Path) -> None:
    target = tmp_path / "checkout"
    unpack_tree(
        archive(
            folder("checkout/.git"),
            file("checkout/.git/config"),
            file("checkout/.git/HEAD"),
            folder("checkout/.git/hooks"),
            file("checkout/.git/hooks/post-commit"),
            folder("checkout/.git/objects"),
            folder("checkout/.git/objects/info"),
            file("checkout/.git/objects/info/alternates"),
            link("checkout/.git/objects/pack", "/somewhere"),
            folder("checkout/.git/refs"),
            file("checkout/.git/refs/config"),
            folder("checkout/sub"),
            file("checkout/sub/.git", b"gitdir: /"),
            file("checkout/sub/config"),
        ),
        target,
    )
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir())
    assert found == [".git/HEAD", ".git/refs/config", "sub/config"]


def test_a_checkout_that_is_a_link_is_none(tmp_path: Path) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as made:
        link("checkout", "/etc")(made)
    unpack_tree([target.getvalue()], tmp_path / "checkout")
    assert not (tmp_path / "checkout").exists()
    assert not (tmp_path / "checkout").is_symlink()


def test_what_goes_in_belongs_to_the_image_s_user(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/run").write_text("x")
    target = io.BytesIO()
    pack(PurePosixPath("/taskrunner"), {"config.json": b"{}"}, tmp_path / "source", Owner(4711, 4712), target)
    with tarfile.open(fileobj=io.BytesIO(target.getvalue())) as made:
        assert {(entry.uid, entry.gid) for entry in made} == {(4711, 4712)}
        modes = {entry.name.lstrip("/"): entry.mode & 0o777 for entry in made}
    assert modes["taskrunner"] == 0o700
    assert modes["taskrunner/config.json"] == 0o600
    assert "taskrunner/checkout/run" in modes


PASSWD = "root:x:0:0::/root:/bin/sh\nworker:x:4711:4712::/:/bin/sh\n"
GROUP = "root:x:0:\ncrew:x:99:worker\n"


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("worker", (4711, 4712)),
        ("4711", (4711, 4712)),
        ("worker:crew", (4711, 99)),
        ("5000", (5000, 0)),
        ("5000:6000", (5000, 6000)),
        ("", (0, 0)),
    ],
)
def test_a_user_is_looked_up_in_the_image(user: str, ids: tuple[int, int]) -> None:
    assert user_ids(user, PASSWD, GROUP) == ids


@pytest.mark.parametrize("user", ["nobody", "worker:nobody"])
def test_an_unknown_user_is_none(user: str) -> None:
    with pytest.raises(LookupError):
        user_ids(user, PASSWD, GROUP)
