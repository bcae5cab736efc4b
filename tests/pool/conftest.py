"""What every test of the pool has."""

from tests.pool.scripted import scripted_pools_end

__all__ = ["scripted_pools_end"]
