"""Tables of papers: methods x noise cases x scenes."""

from typing import TYPE_CHECKING

from hsidenoise.system import offer

if TYPE_CHECKING:
    from hsidenoise.benchmark.make import make_tables
    from hsidenoise.inference.method import Method, make_method

__all__ = ["Method", "make_method", "make_tables"]

offer(__name__, {"Method": "config", "make_method": "config", "make_tables": "make"})
