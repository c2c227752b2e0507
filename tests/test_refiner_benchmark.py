"""What benchmarks/refiner.py makes of reports and volumes, against answers known by hand."""

from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from benchmarks.refiner import DRAWS, HELD_FROM, PATCH, calls_of, decoded_texture, of_draws, worst, write_patches


def test_draws_of_patches_are_held_against_what_the_first_stage_gives_back():
    """Decoded is off by 0.1 everywhere, every draw by noise of 0.1 of its own: as far, but for their mean."""
    rng = np.random.default_rng(0)
    true = np.repeat(rng.random((3, 16, 16, 16)), DRAWS, axis=0)
    noise = rng.standard_normal(true.shape)
    found = of_draws(true, true + 0.1, true + 0.1 * noise)
    assert found["psnr_db"]["decoded"] == pytest.approx(20, abs=0.01)
    assert found["above_decoded"]["one_draw_db"] == pytest.approx(0, abs=0.05)
    assert found["above_decoded"]["mean_of_draws_db"] == pytest.approx(10 * np.log10(DRAWS), abs=0.1)
    assert found["spread_of_draws"] == pytest.approx(0.1 * np.sqrt(15 / 16), rel=0.03)
    assert found["before"]["bands_db"][3:] == pytest.approx([0] * 5, abs=1e-3) and found["patches"] == 3
    added = 10 * np.log10(1 + 0.01 * 12)  # uniform values have a variance of 1/12
    assert found["refined"]["corners_db"] == pytest.approx(added, abs=0.1)
    assert found["holds"] == {"bands_db": True, "mean_of_draws_db": True, "one_draw_db": True}
    blurred = of_draws(true, true + 0.01, true * 0.5)
    assert blurred["holds"] == {"bands_db": False, "mean_of_draws_db": False, "one_draw_db": False}


def test_patches_that_are_held_out_share_no_voxel_with_the_others(tmp_path):
    write_patches(tmp_path)
    patches, draws = ([np.load(path) for path in sorted((tmp_path / name).iterdir())] for name in ("patches", "draws"))
    assert len(patches) == 5 * 3 * 3 and len(draws) == 2 * 2 * DRAWS
    assert {patch.shape for patch in patches + draws} == {(PATCH,) * 3} and HELD_FROM + PATCH == 41
    whole = np.asarray(nibabel.load(Path(nibabel.__file__).parent / "tests/data/anatomical.nii").dataobj)
    true = whole[:PATCH, HELD_FROM:, :PATCH].ravel()
    assert np.corrcoef(true, draws[0].ravel())[0, 1] > 0.99 > np.corrcoef(true, patches[0].ravel())[0, 1]
    assert all((patch == draws[0]).all() for patch in draws[:DRAWS]) and (draws[DRAWS] != draws[0]).any()
    assert min(patch.min() for patch in patches) == 0 and max(patch.max() for patch in patches) == 1


def test_calls_of_the_sampler_that_samples_name():
    settings = {"_target_": "samplers.edm_sampler", "num_steps": 5, "sigma_min": 0.02, "sigma_max": 20}
    samples = SimpleNamespace(meta=SimpleNamespace(sampling={"refiner": {"hash": "", "sampler": settings}}))
    assert calls_of(samples) == 9  # Heun's two a step, and one for the last


def test_lengths_count_where_neighbours_are_correlated():
    axes = ["axis 0", "axis 1"]
    rows = {"bands": {"difference": [0.1] * 8 + [3.0]},
            "lag1": {"names": axes, "real": [0.6, 0.1], "difference": [0, 1]},
            "length_mm": {"difference": [-0.05, 2.0]}, "intensity_mean_ks": 0.1, "intensity_std_ks": 0.2,
            "contrast": {"names": ["background", "cavity", "myocardium"], "difference": [-0.1, None, 0.2]}}
    found = decoded_texture({"texture": {"echo": rows}, "psnr_db": 30.0})
    assert found["length"] == {"axis 0": -0.05} and found["contrast"] == {"wall": 0.2, "tissue": -0.1}
    assert found["bands_db"] == [0.1] * 8 and found["corners_db"] == 3
    assert worst(found["contrast"]) == 0.2 and worst([0, None]) == float("inf")
