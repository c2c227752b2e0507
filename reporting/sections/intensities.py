"""Mean and spread of the intensities: intensity_mean, intensity_std, the channel in front if there are several."""

from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.sections.scalars import Numbers


class Intensities(Numbers):
    """Mean and standard deviation over the voxels of every channel."""

    def units(self, layout: Layout) -> dict[str, str | None]:
        prefixes = [f"{channel}_" for channel in layout.channels] if len(layout.channels) > 1 else [""]
        return {f"{prefix}intensity_{key}": layout.unit for prefix in prefixes for key in ("mean", "std")}

    def measure(self, case: Case, layout: Layout) -> dict[str, float | bool]:
        values = [float(value) for volume in case.inside.image for value in
                  (volume.mean(dtype="float64"), volume.std(dtype="float64"))]
        return dict(zip(self.units(layout), values, strict=True))
