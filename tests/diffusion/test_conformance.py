"""Every image family against the conformance suite."""

from functools import partial

from mmalign.testing import tiny
from mmalign.testing.families import FamilyConformance


class TestStableDiffusion1(FamilyConformance):
    family = "sd15"
    write = staticmethod(tiny.write_tiny_sd15)


class TestStableDiffusion2(FamilyConformance):
    family = "sd15"
    write = staticmethod(partial(tiny.write_tiny_sd15, prediction="v_prediction"))


class TestSDXL(FamilyConformance):
    family = "sdxl"
    write = staticmethod(tiny.write_tiny_sdxl)


class TestSDXLTurbo(FamilyConformance):
    family = "sdxl"
    write = staticmethod(partial(tiny.write_tiny_sdxl, variant="turbo"))


class TestSDXLRefiner(FamilyConformance):
    family = "sdxl"
    write = staticmethod(partial(tiny.write_tiny_sdxl, variant="refiner"))
