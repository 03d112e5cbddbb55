"""A page as headless Chromium shows it: what its console says, and whether it fits."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

#: Looks at a page inside a frame of a given width, which is of the same origin as the frame's.
LOOK = """<!doctype html><title>look</title><link rel="icon" href="data:,">
<body><pre id="seen"></pre>
<iframe id="frame" width="WIDTH" height="800" style="border:0" srcdoc="PAGE"></iframe><script>
const frame = document.getElementById("frame");
frame.addEventListener("load", async () => {
  const inside = frame.contentDocument, images = [...inside.images];
  await Promise.all(images.map(image => image.decode().catch(() => 0)));
  document.getElementById("seen").textContent = JSON.stringify({
    width: inside.documentElement.clientWidth,
    needed: Math.max(inside.documentElement.scrollWidth, inside.body.scrollWidth),
    title: inside.title,
    ground: frame.contentWindow.getComputedStyle(inside.body).backgroundColor,
    images: images.map(image => ({alt: image.alt, drawn: image.naturalWidth})),
    elsewhere: frame.contentWindow.performance.getEntriesByType("resource")
      .map(entry => entry.name).filter(name => !name.startsWith("data:")),
  });
});
</script>"""


def browser() -> str | None:
    """The command of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def look(page: str, folder: Path, *, width: int, dark: bool) -> dict[str, Any]:
    """What the page is like at ``width`` pixels, and "console": the lines that it wrote there."""
    command = browser()
    assert command is not None
    wrapper = folder / "look.html"
    framed = LOOK.replace("WIDTH", str(width)).replace("PAGE", html.escape(page))
    wrapper.write_text(framed, encoding="utf-8")
    done = subprocess.run(
        [
            command,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="seen">(\{.*?\})</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {**json.loads(html.unescape(found[1])), "console": console}
