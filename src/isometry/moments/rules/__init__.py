"""The rules, by family; importing this package registers all of them."""

from isometry.moments.rules import attention as attention
from isometry.moments.rules import average_pool as average_pool
from isometry.moments.rules import bags as bags
from isometry.moments.rules import batchnorm as batchnorm
from isometry.moments.rules import conv as conv
from isometry.moments.rules import drawn as drawn
from isometry.moments.rules import factorisation as factorisation
from isometry.moments.rules import grouped as grouped
from isometry.moments.rules import index as index
from isometry.moments.rules import layout as layout
from isometry.moments.rules import linear as linear
from isometry.moments.rules import loss as loss
from isometry.moments.rules import max_pool as max_pool
from isometry.moments.rules import norm as norm
from isometry.moments.rules import order as order
from isometry.moments.rules import parametric as parametric
from isometry.moments.rules import pointwise as pointwise
from isometry.moments.rules import random as random
from isometry.moments.rules import reduce as reduce
from isometry.moments.rules import scan as scan
from isometry.moments.rules import scatter as scatter
from isometry.moments.rules import spatial as spatial
from isometry.moments.rules import spectral as spectral
from isometry.moments.rules import statistics as statistics
from isometry.moments.rules import views as views
