"""Metadata of a release that pyproject.toml cannot know: where its source lies."""

import os
import re
from pathlib import Path

from setuptools import setup

README = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")


def released(readme: str, source: str, tag: str) -> str:
    """The README as a package index shows it: its links and images lead to the tagged source."""

    def absolute(link: re.Match[str]) -> str:
        view = "raw" if link["mark"] else "blob"
        return f"{link['mark']}[{link['text']}]({source}/{view}/{tag}/{link['target']})"

    relative = r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?!\w+:|#)[^)]+)\)"
    return re.sub(relative, absolute, readme)


# The service that makes releases (.github/workflows/release.yml) names the repository it builds.
details = {"long_description": README}
if "GITHUB_REPOSITORY" in os.environ:
    source = f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}"
    tag = os.environ["GITHUB_REF_NAME"]
    details = {
        "long_description": released(README, source, tag),
        "project_urls": {
            "Source": source,
            "Issues": f"{source}/issues",
            "Documentation": f"{source}/blob/{tag}/docs/index.md",
            "Changelog": f"{source}/blob/{tag}/docs/changelog.md",
        },
    }

setup(cmake_source_dir=".", long_description_content_type="text/markdown", **details)
