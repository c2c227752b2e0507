"""What the reports show, in order: a new number or section is one file here and one line below."""

from edm3d.reporting.section import COMPARED, DECODED
from edm3d.reporting.sections.asked_attributes import AttributesFollowed
from edm3d.reporting.sections.asked_maps import AskedMaps
from edm3d.reporting.sections.classes import AskedClasses
from edm3d.reporting.sections.copies import CopiesFound
from edm3d.reporting.sections.cycle import CycleClassifier
from edm3d.reporting.sections.decoded_pictures import DecodedPictures
from edm3d.reporting.sections.dose_calibration import DoseCalibration
from edm3d.reporting.sections.dose_levels import DoseLevels
from edm3d.reporting.sections.dose_methods import DoseMethods
from edm3d.reporting.sections.dose_pictures import DosePictures
from edm3d.reporting.sections.ejection import Ejection
from edm3d.reporting.sections.feature_distances import FeatureDistances
from edm3d.reporting.sections.fidelity import Fidelity
from edm3d.reporting.sections.grain import Grain
from edm3d.reporting.sections.heart import HeartWall, StackedHeart
from edm3d.reporting.sections.held_out import HeldOut
from edm3d.reporting.sections.image_classes import ImageClasses
from edm3d.reporting.sections.intensities import Intensities
from edm3d.reporting.sections.latents import Latents
from edm3d.reporting.sections.membership import MembershipAttack
from edm3d.reporting.sections.padding_slices import PaddingSlices
from edm3d.reporting.sections.pairs import ImagePairs
from edm3d.reporting.sections.private_training import PrivateTraining
from edm3d.reporting.sections.provenance import Provenance
from edm3d.reporting.sections.sample_pictures import SamplePictures
from edm3d.reporting.sections.scalars import MeasuredOnce, Scalars
from edm3d.reporting.sections.scorecard import Scorecard
from edm3d.reporting.sections.structures import Structures
from edm3d.reporting.sections.surfaces import Surfaces
from edm3d.reporting.sections.sweep import AttributeSweep
from edm3d.reporting.sections.tested_pictures import TestedPictures
from edm3d.reporting.sections.texture import Texture
from edm3d.reporting.sections.told_apart import ToldApart
from edm3d.reporting.sections.topology import Topology
from edm3d.reporting.sections.trained_on import TrainedOn
from edm3d.reporting.sections.utility import Utility
from edm3d.reporting.sections.variety import Variety
from edm3d.reporting.sections.viewer import Viewer, real_and_decoded, real_and_generated
from edm3d.reporting.sections.voxel_classes import VoxelClasses
from edm3d.reporting.sections.way_from_noise import WayFromNoise

# Numbers of one volume, which sections hold against real ones.
NUMBERS = (
    Structures(),
    HeartWall(),
    StackedHeart(),
    Topology(),
    Surfaces(),
    Intensities(),
)
MEASURED = MeasuredOnce(NUMBERS)  # once for all sections
# Sections of the report of generated volumes against real ones.
COMPARISON = (
    PaddingSlices(COMPARED),
    Scalars(MEASURED),
    ToldApart(MEASURED),
    Ejection(MEASURED),
    AskedClasses(MEASURED),
    AttributesFollowed(MEASURED),
    AttributeSweep(MEASURED),
    SamplePictures(),
    Viewer(real_and_generated),
    WayFromNoise(),
    Texture(),
    Grain("generated"),
    Variety(),
    FeatureDistances(),
    HeldOut(),
    AskedMaps(),
    CycleClassifier(),
    ImagePairs(),
    Utility(),
    CopiesFound(),
    MembershipAttack(),
    PrivateTraining(),
    Provenance(),
)
COMPARISON = (*COMPARISON, Scorecard(COMPARISON))  # what all before it say
# Sections of the report of a first stage.
FIRST_STAGE = (
    PaddingSlices(DECODED),
    Fidelity(),
    Grain("decoded"),
    DecodedPictures(),
    Viewer(real_and_decoded),
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
