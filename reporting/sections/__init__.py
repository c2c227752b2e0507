"""What the reports show, in order: a new number or section is one file here and one line below."""

from edm3d.reporting.sections.classes import AskedClasses
from edm3d.reporting.sections.copies import CopiesFound
from edm3d.reporting.sections.decoded_pictures import DecodedPictures
from edm3d.reporting.sections.dose_calibration import DoseCalibration
from edm3d.reporting.sections.dose_levels import DoseLevels
from edm3d.reporting.sections.dose_methods import DoseMethods
from edm3d.reporting.sections.dose_pictures import DosePictures
from edm3d.reporting.sections.fidelity import Fidelity
from edm3d.reporting.sections.grain import Grain
from edm3d.reporting.sections.heart import HeartWall
from edm3d.reporting.sections.held_out import HeldOut
from edm3d.reporting.sections.image_classes import ImageClasses
from edm3d.reporting.sections.intensities import Intensities
from edm3d.reporting.sections.latents import Latents
from edm3d.reporting.sections.membership import MembershipAttack
from edm3d.reporting.sections.sample_pictures import SamplePictures
from edm3d.reporting.sections.scalars import Scalars
from edm3d.reporting.sections.structures import Structures
from edm3d.reporting.sections.tested_pictures import TestedPictures
from edm3d.reporting.sections.texture import Texture
from edm3d.reporting.sections.trained_on import TrainedOn
from edm3d.reporting.sections.variety import Variety
from edm3d.reporting.sections.voxel_classes import VoxelClasses

# Numbers of one volume, which the section Scalars compares.
NUMBERS = (
    Structures(),
    HeartWall(),
    Intensities(),
)
# Sections of the report of generated volumes against real ones.
COMPARISON = (
    Scalars(NUMBERS),
    AskedClasses(NUMBERS),
    SamplePictures(),
    Texture(),
    Grain("generated"),
    Variety(),
    HeldOut(),
    CopiesFound(),
    MembershipAttack(),
)
# Sections of the report of a first stage.
FIRST_STAGE = (
    Fidelity(),
    Grain("decoded"),
    DecodedPictures(),
    Latents(),
)
# Sections of the report of downstream networks on real test cases: of the classes of voxels, and of images.
OF_VOXELS = (
    TrainedOn(),
    VoxelClasses(),
    TestedPictures(),
)
OF_IMAGES = (
    TrainedOn(),
    ImageClasses(),
    TestedPictures(),
)
# Sections of the report of drawn high doses of PET scans.
ENHANCEMENT = (
    DoseMethods(),
    DosePictures(),
    DoseCalibration(),
    DoseLevels(),
)
