"""Input and output files of `swintormer deblur`, and the errors that can be found before a network is loaded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from swintormer.errors import SwintormerError
from swintormer.images.files import exists, is_folder, prepare_folder
from swintormer.images.formats import FORMATS, SUFFIXES, reads, result_ending

COMPARISON, PREVIEW = ".compare.png", ".preview.png"


@dataclass(frozen=True)
class Naming:
    """Names of the results.

    Attributes:
        out: a file if it ends as a picture and the input is one file, else a folder.
        recursive: look into the folders inside input folders too; OUT mirrors them.
        suffix: added to the name: "_sharp" makes photo_sharp.png of photo.png.
        form: name in `FORMATS` to convert to; None keeps each file's own.
        compare: also write before and after side by side.
        right: second view of a dual-pixel pair: a file, or a folder with files of the same names as the input folder.
        preview: results are previews, PNG files.
    """

    out: Path
    recursive: bool = False
    suffix: str = ""
    form: str | None = None
    compare: bool = False
    right: Path | None = None
    preview: bool = False


@dataclass(frozen=True)
class Job:
    """One picture to restore.

    Attributes:
        right: second view of a dual-pixel pair.
        comparison: where before and after go side by side.
        preview: whether the result is before and after of the picture's busiest part only.
    """

    source: Path
    target: Path
    right: Path | None = None
    comparison: Path | None = None
    preview: bool = False

    def is_done(self) -> bool:
        """Whether an earlier run wrote the results, which exist only when they are complete."""
        try:
            return exists(self.target) and (self.comparison is None or exists(self.comparison))
        except SwintormerError:
            return False  # restoring it reports the error, for this picture only


@dataclass(frozen=True)
class _Found:
    """A picture, and the path of its result relative to OUT."""

    path: Path
    relative: Path
    folder: Path | None  # the input folder it was found in; None for a file named on the command line


def plan(inputs: list[Path], naming: Naming, foreign: list[Path] | None = None) -> tuple[list[Job], list[str]]:
    """The jobs, with each picture once, and sentences about what cannot be restored, to be reported at the end.

    Args:
        foreign: takes the pictures of other formats, by their endings, that lie in the folders.

    Raises:
        SwintormerError: the folders contain no picture; results would overwrite an input or each other; or the name or
            folder for the results is not possible.
    """
    inputs = list({_place(path): path for path in reversed(inputs)}.values())[
        ::-1
    ]  # without duplicates, in the order of their first
    problems: list[str] = []
    present = [path for path in inputs if _is_there(path, problems)]
    _check_naming(inputs, naming)
    found: dict[str, _Found] = {}
    foreign = [] if foreign is None else foreign
    for path in present:
        for picture in _find(path, naming, problems, foreign):
            found.setdefault(_place(picture.path), picture)  # may also be named itself beside its folder
    if not found and not problems:
        deeper = "" if naming.recursive else " (--recursive looks into the folders inside)"
        raise SwintormerError(f"There is no PNG, TIFF, JPEG or WebP picture in {_listed(inputs)}{deeper}.")
    jobs = [job for picture in found.values() if (job := _job(picture, inputs, naming, problems))]
    jobs = _apart(jobs, naming)
    _check_collisions(jobs)
    return jobs, problems


def _is_there(path: Path, problems: list[str]) -> bool:
    try:
        if exists(path):
            return True
        problems.append(f"There is no file or folder {path}.")
    except SwintormerError as error:
        problems.append(str(error))
    return False


def _check_naming(inputs: list[Path], naming: Naming) -> None:
    if naming.form is not None and naming.form not in FORMATS:
        raise SwintormerError(f"The format must be one of {', '.join(FORMATS)}, found {naming.form!r}.")
    if "/" in naming.suffix or os.sep in naming.suffix:
        raise SwintormerError(f"The suffix {naming.suffix!r} is part of a file name and must not hold a {os.sep!r}.")
    if naming.right is not None and not exists(naming.right):
        raise SwintormerError(f"There is no file or folder {naming.right} (--right).")
    several = "several pictures" if len(inputs) > 1 else "a folder"
    if _is_file(inputs, naming):
        form = FORMATS[SUFFIXES[naming.out.suffix.lower()]]
        if naming.form not in (None, SUFFIXES[naming.out.suffix.lower()]):
            raise SwintormerError(f"{naming.out} is a name for {form.name}, but --format asks for {naming.form}.")
        if naming.suffix:
            raise SwintormerError(f"{naming.out} is the whole name of the result: leave out --suffix.")
    elif exists(naming.out) and not is_folder(naming.out):
        if len(inputs) == 1 and not os.path.isdir(inputs[0]):
            raise SwintormerError(f"Cannot write {naming.out}: its name must end in one of {', '.join(SUFFIXES)}.")
        raise SwintormerError(f"{naming.out} is a file, but the results of {several} need a folder.")
    elif naming.out.suffix.lower() in SUFFIXES and not is_folder(naming.out):
        raise SwintormerError(f"{naming.out} names one picture, but the results of {several} need a folder: name one.")
    elif reads(naming.out) is not None and not is_folder(naming.out):
        raise SwintormerError(f"Cannot write {naming.out}: its name must end in one of {', '.join(SUFFIXES)}.")


def _is_file(inputs: list[Path], naming: Naming) -> bool:
    """Whether OUT is the name of the result: one input file, and the ending of a picture format."""
    if len(inputs) > 1 or naming.out.suffix.lower() not in SUFFIXES or is_folder(naming.out):
        return False
    return not os.path.isdir(inputs[0])  # False also without permission, which is reported elsewhere


def _find(path: Path, naming: Naming, problems: list[str], foreign: list[Path]) -> Iterator[_Found]:
    """A file itself; for a folder, its pictures by their endings, sorted by name, without results of this program."""
    if not is_folder(path):
        yield _Found(path, Path(path.name), None)
        return

    def note(error: OSError) -> None:
        problems.append(f"Cannot look into the folder {error.filename}: {error.strerror}.")

    results = os.path.realpath(naming.out)
    for folder, inner, names in os.walk(path, onerror=note):
        if not naming.recursive:
            inner.clear()
        inner[:] = sorted(name for name in inner if os.path.realpath(Path(folder, name)) != results)
        for name in sorted(names):
            relative = Path(folder, name).relative_to(path)
            if name.startswith("."):
                continue
            if not reads(relative):
                if reads(relative) is False:
                    foreign.append(Path(folder, name))
                continue
            if _is_result(relative, path, naming):
                continue
            yield _Found(Path(folder, name), relative, path)


def _is_result(relative: Path, folder: Path, naming: Naming) -> bool:
    """Whether an earlier run gave this name to a result, if results are written into the folder of the pictures."""
    if os.path.realpath((naming.out / relative).parent) != os.path.realpath((folder / relative).parent):
        return False
    return relative.name.endswith((COMPARISON, PREVIEW)) or bool(
        naming.suffix and relative.stem.endswith(naming.suffix)
    )


def _job(found: _Found, inputs: list[Path], naming: Naming, problems: list[str]) -> Job | None:
    """None, with a sentence in `problems`, for a file that is not a picture by its name nor by its content."""
    if _is_file(inputs, naming):
        target = naming.out
    else:
        try:
            ending = _ending(found.path, naming)
        except SwintormerError as error:
            problems.append(str(error))
            return None
        target = naming.out / found.relative.with_name(found.relative.stem + naming.suffix + ending)
    comparison = target.with_name(target.stem + COMPARISON) if naming.compare else None
    return Job(found.path, target, _right_view(found, naming), comparison, naming.preview)


def _apart(jobs: list[Job], naming: Naming) -> list[Job]:
    """Where results would share a name, as those of a.jpg and a.png do, it holds the old ending: a.jpg.png."""
    shared = _shared([job.target for job in jobs])
    jobs = [_with_old_ending(job, naming) if _identity(job.target) in shared else job for job in jobs]
    shared = _shared([job.comparison for job in jobs if job.comparison])
    return [
        replace(job, comparison=job.target.with_name(job.target.name + COMPARISON))
        if job.comparison and _identity(job.comparison) in shared
        else job
        for job in jobs
    ]


def _shared(paths: list[Path]) -> set[str]:
    return {key for key, count in Counter(map(_identity, paths)).items() if count > 1}


def _with_old_ending(job: Job, naming: Naming) -> Job:
    ending = PREVIEW if job.preview else job.target.suffix
    if job.source.suffix == ending:
        return job
    target = job.target.with_name(job.source.name + naming.suffix + ending)
    return replace(job, target=target, comparison=job.comparison and target.with_name(target.stem + COMPARISON))


def _ending(path: Path, naming: Naming) -> str:
    if naming.preview:
        return PREVIEW
    return result_ending(path, naming.form)


def _right_view(found: _Found, naming: Naming) -> Path | None:
    if naming.right is None:
        return None
    if is_folder(naming.right):
        return naming.right / found.relative
    if found.folder is not None:
        raise SwintormerError(f"{naming.right} is one file, but {found.folder} is a folder: give a folder to --right.")
    return naming.right


def _check_collisions(jobs: list[Job]) -> None:
    """Raise an error if a result would overwrite an input or another result."""
    inputs = {_identity(path): path for job in jobs for path in (job.source, job.right) if path is not None}
    taken: dict[str, Path] = {}
    for job in jobs:
        for result in filter(None, (job.target, job.comparison)):
            key = _identity(result)
            if key in inputs:
                raise SwintormerError(
                    f"{result} would overwrite an input: choose another folder, or a --suffix such as _sharp."
                )
            if key in taken:
                raise SwintormerError(
                    f"Both {taken[key]} and {job.source} would become {result}: rename one or restore them in two runs."
                )
            taken[key] = job.source


def check_page(page: Path) -> None:
    """Raise an error unless an HTML page can be written there."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise SwintormerError(f"Cannot write {page}: the name of a report must end in .html.")
    prepare_folder(page)


def _identity(path: Path) -> str:
    """Equal for two paths to the same file, as far as that is known before it exists."""
    return os.path.normcase(os.path.realpath(path))


def _place(path: Path) -> str:
    """Equal for two spellings of the same name in the same folder. A link is a different name, with its own result."""
    path = Path(os.path.abspath(path))
    return os.path.normcase(os.path.join(os.path.realpath(path.parent), path.name))


def _listed(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths)
