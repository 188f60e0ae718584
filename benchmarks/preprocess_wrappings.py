"""Netflix's raw files wrapped as people download them, made of a folder of plain files, for bench_preprocess.py."""

import io
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

LEVEL = 6  # of compression, what gzip and zip take where nobody says otherwise


def kaggle_zip(raw_dir: Path, path: Path) -> None:
    """Write Kaggle's zip of the four rating files, the titles and the probe."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive:
        for file in _plain_files(raw_dir):
            archive.write(file, file.name)


def prize_tar_gz(raw_dir: Path, path: Path) -> None:
    """Write the original archive: titles, probe and a tar of a rating file for each movie, in a tar.gz."""
    with (tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tar") as inner,
          tarfile.open(path, "w:gz", compresslevel=LEVEL) as archive):
        with tarfile.open(fileobj=inner, mode="w") as training_set:
            for movie_id, text in _by_movie(raw_dir):
                entry = tarfile.TarInfo(f"training_set/mv_{movie_id:07}.txt")
                entry.size = len(text)
                training_set.addfile(entry, io.BytesIO(text))
        inner.flush()
        archive.add(inner.name, "download/training_set.tar")
        for file in _plain_files(raw_dir):
            if not file.name.startswith("combined_data"):
                archive.add(file, f"download/{file.name.replace('titles.csv', 'titles.txt')}")


WRAPPINGS: dict[str, Callable[[Path, Path], None]] = {
    "netflix-prize-data.zip": kaggle_zip, "nf_prize_dataset.tar.gz": prize_tar_gz}


def _plain_files(raw_dir: Path) -> list[Path]:
    return [*sorted(raw_dir.glob("combined_data_*.txt")), raw_dir / "movie_titles.csv",
            *sorted(raw_dir.glob("probe.txt"))]


def _by_movie(raw_dir: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each movie's id and the text about it, header included."""
    for file in sorted(raw_dir.glob("combined_data_*.txt")):
        text = file.read_bytes()
        headers = list(re.finditer(rb"^(\d+):$", text, re.MULTILINE))
        for header, end in zip(headers, [*(later.start() for later in headers[1:]), len(text)], strict=True):
            yield int(header[1]), text[header.start():end]
