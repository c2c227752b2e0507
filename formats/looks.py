"""What a file looks like by its first bytes, where it is not what its name says; and files that are none."""

from pathlib import Path

HEAD = 512  # bytes that are looked at
UNKNOWN = "it is of no kind that is read here, or damaged"
_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not a volume: fetch it (git lfs pull)"),
    (b"/annex/objects/", "a git-annex pointer, not a volume: fetch it (git annex get)"),
    (b"\x1f\x8b", "gzip: name it .nii.gz"),
    (b"\x93NUMPY", "a .npy file: name it so"),
    (b"PK\x03\x04", "a zip archive: is it a .npz, or is there something in it to unpack?"),
    (b"\x89HDF", "an HDF5 file"),
    (b"CDF", "a NetCDF file, as MINC has them: convert it to NIfTI"),
    (b"NRRD", "an NRRD file: convert it to NIfTI"),
    (b"ObjectType", "a MetaImage header: convert it to NIfTI"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"BZh", "bzip2: unpack it"),
    (b"\xfd7zXZ", "xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd: unpack it"),
)


def looks_like(head: bytes) -> str:
    """What a file is by its first HEAD bytes, and what to do with it, as in 'it looks like an HDF5 file'."""
    if not head:
        return "it is empty"
    for start, what in _STARTS:
        if head.startswith(start):
            return f"it looks like {what}"
    if head[128:132] == b"DICM":
        return "it looks like a DICOM file: convert the series to NIfTI"
    if head[344:347] in (b"n+1", b"ni1"):
        return "it looks like NIfTI that is not compressed: name it .nii"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it looks like a web page, as a download gives whose address or login was wrong: fetch it anew"
    if not any(head):
        return "it begins with zeros: was it never filled, as when a download or a disk broke off?"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "it looks like text"
    return UNKNOWN


def check_is_plain(path: Path) -> None:
    """ValueError unless a path leads to a file whose bytes lie there: pipes and devices would be waited for."""
    if path.is_file():
        return
    if path.is_symlink() and not path.exists():
        what = f"is a link to {path.readlink()}, which is not there"
        if ".git/annex" in str(path.readlink()):
            what += ": fetch it (git annex get)"
    elif path.is_dir():
        what = "is a folder, wanted a file"
    else:
        what = "is no plain file but a pipe or a device" if path.exists() else "no such file"
    raise ValueError(f"{path}: {what}")
