"""stats.jsonl: a line that is no tick is named and left out, and the others stay as they are."""

import pytest

from edm3d.utils.stats import StatsFiles, drop_later_ticks, odd_ticks

GOOD = [b'{"kimg": 0.001}', b'{"kimg": 0.002, "loss": null}', b'{"kimg": 0.003, "x": "\xc3\xa9"}']


@pytest.mark.parametrize("odd", [b"[1]", b"null", b'{"kimg": "x"}', b'{"kimg": NaN}', b'{"kimg": 1e999}', b"{",
                                 b'{"kimg": 1' + b"0" * 400 + b"}", b'{"kimg": true}', b'\xff{"kimg": 0.001}',
                                 b"[" * 100_000, b'{"kimg": ' + b"9" * 5000 + b"}", b"{}"])
def test_an_odd_line_stops_nothing_is_named_and_takes_no_other_with_it(tmp_path, odd):
    path, said = tmp_path / "stats.jsonl", []
    path.write_bytes(b"\n".join([GOOD[0], odd, *GOOD[1:], b'{"kimg": 0.009}', b'{"kimg": 0.0']))
    assert odd_ticks(path)[0] == 4
    files = StatsFiles(tmp_path, 3, log=said.append)
    files.write({"kimg": 0.004}, 4)
    files.close()
    assert path.read_bytes() == b"\n".join([*GOOD, b'{"kimg": 0.004}', b""])
    assert len(said) == 1 and f"Warning: {path}: line 2 (" in said[0] and "\n" not in said[0]


def test_a_file_without_odd_lines_is_left_alone(tmp_path):
    path = tmp_path / "stats.jsonl"
    assert drop_later_ticks(path, 3) == [] and not path.exists()
    path.write_bytes(b"\n".join([*GOOD, b""]))
    before = path.stat().st_ino
    assert drop_later_ticks(path, 3) == [] and path.stat().st_ino == before
    assert drop_later_ticks(path, 1) == [] and path.read_bytes() == GOOD[0] + b"\n"
