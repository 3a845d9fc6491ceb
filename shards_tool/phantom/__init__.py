"""Synthetic chest radiographs with known anatomy, findings and reports: an archive to try everything on."""

from shards_tool.phantom.archive import Summary, write_archive
from shards_tool.phantom.render import Film, FilmSpec, render_film

__all__ = ["Film", "FilmSpec", "Summary", "render_film", "write_archive"]
