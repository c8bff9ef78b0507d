"""The small bundle's hub, manifest and folder, for all tests of the weights."""

from support.small_bundle import hub_fixture, manifest_fixture, root_fixture

__all__ = ["hub_fixture", "manifest_fixture", "root_fixture"]
