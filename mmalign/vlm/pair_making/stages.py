"""Work that is written down as it is done; see `mmalign.data.pair_making.stages`."""

from mmalign.data.pair_making.stages import Stages, read_given

__all__ = ["Stages", "read_given"]
