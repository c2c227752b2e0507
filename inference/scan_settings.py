"""What sampling.scan and a snapshot say of scans: how they are simulated, and brought to one scale."""

import inspect
from collections.abc import Mapping
from math import prod
from typing import Any

from edm3d.inference.network_files import check_size
from edm3d.inference.snapshot import Snapshot
from edm3d.physics.activity_scale import ActivityScale
from edm3d.physics.dose import DoseSimulation
from edm3d.utils.checks import check_memory
from edm3d.utils.config import build, build_from_file, no_such
from edm3d.utils.names import one_line
from edm3d.utils.plain import shown
from edm3d.utils.trusted import SCALES, SIMULATIONS

KEY = "sampling.scan"
OWN_KEYS = ("unit", "fit")  # of sampling.scan, besides what is simulated
FIXED = ("size",)  # of a simulation, which the network's own is
PER_CROSSING = 16  # bytes at least of a line's length in each pixel that it crosses, some as many as pixels on a side
MOST, ENDLESS = 100_000, ("iterations", "angles", "shifts", "subsets")  # of a simulation


def checked_settings(scan: Mapping[str, Any]) -> dict[str, Any]:
    """What sampling.scan says; ValueError for other names, and values that none of them can have."""
    known = [*OWN_KEYS, *(name for name in inspect.signature(DoseSimulation).parameters if name not in FIXED)]
    for name, value in scan.items():
        if name not in known:
            raise ValueError(f"{KEY}.{one_line(str(name))}: {no_such('setting of a scan', str(name), known)}")
        wanted = {"unit": (str, "text"), "fit": (bool, "true or false")}.get(name, ((int, float), "a number"))
        if not isinstance(value, wanted[0]) or (isinstance(value, bool) and name != "fit"):
            raise ValueError(f"{KEY}.{name}={shown(value)}: wanted {wanted[1]}")
    if not 0 < scan.get("dose", 1) <= 1:
        raise ValueError(f"{KEY}.dose={scan['dose']}: wanted a share of the high dose, above 0 and up to 1")
    return dict(scan)


def simulation_of(snapshot: Snapshot, changed: Mapping[str, Any], trust: bool) -> tuple[DoseSimulation, dict[str, Any]]:
    """How scans are simulated, as in training but for what is changed; and the node that says so.

    ValueError for a node of the snapshot that names what no file may.
    """
    made, node = trained_simulation(snapshot, trust), snapshot.dose.simulation
    own = {name: value for name, value in changed.items() if name not in OWN_KEYS}
    if own:
        node = {**node, **own}
        check_simulation(own, KEY)
        made = build(node, path=KEY, trust=trust)
    if geometry := getattr(made, "geometry", None):
        if (size := (geometry.size,) * 2) != snapshot.volume_shape[-2:]:
            raise ValueError(f"{snapshot.path}: dose.simulation.size is {size[0]}, its network draws "
                             f"{list(snapshot.volume_shape)}")
        lines = f"{geometry.angles} angles x {geometry.shifts} shifts"
        check_memory(f"{KEY if own else snapshot.path}: simulating scans by {lines}",
                     PER_CROSSING * prod(geometry.sinogram_shape) * geometry.size)
    return made, dict(node)


def trained_simulation(snapshot: Snapshot, trust: bool) -> DoseSimulation:
    """How scans were simulated in training; ValueError for a node that names, or asks for, what no file may."""
    node, where = snapshot.dose.simulation, f"{snapshot.path}: dose.simulation"
    check_size(node, where)
    check_simulation(node, where)
    return build_from_file(node, where, trust, SIMULATIONS)


def check_simulation(node: Mapping[str, Any], where: str) -> None:
    """ValueError for a simulation that would not come to an end."""
    for name in (name for name in ENDLESS if isinstance(node.get(name), (int, float)) and node[name] > MOST):
        raise ValueError(f"{where}.{name}={shown(node[name])}: wanted no more than {MOST}")


def scale_of(snapshot: Snapshot, trust: bool) -> ActivityScale:
    """By which scans are brought to one scale; ValueError for a node that names what no file may."""
    return build_from_file(snapshot.dose.scale, f"{snapshot.path}: dose.scale", trust, SCALES)
