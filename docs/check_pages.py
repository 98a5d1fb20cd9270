"""Looks at every built page in a real browser, at the width of a desk and of a phone.

    make docs
    pip install playwright
    python docs/check_pages.py [--browser FILE] [--shots FOLDER]

It serves site/ on this machine. It says which page is wider than the screen, writes an error to the console,
or asks for anything from elsewhere. With --shots it keeps a picture of each page.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

SITE = Path(__file__).parents[1] / "site"
WIDTHS = {"desk": 1280, "phone": 390}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and writes no log."""

    def log_message(self, *_: object) -> None:
        """Writes nothing."""


def faults(browser: Browser, root: str, address: str, size: str, shots: Path | None) -> Iterator[str]:
    """What is wrong with a page at a size of the screen."""
    page = browser.new_page(viewport={"width": WIDTHS[size], "height": 900})
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((root, "data:")) else errors.append(r.url))
    page.goto(root + address, wait_until="load")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if wide > 0:
        errors.append(f"{wide} pixels wider than the screen")
    if shots is not None:
        page.screenshot(
            path=shots / f"{address.strip('/').replace('/', '-') or 'home'}-{size}.png", full_page=True
        )
    page.close()
    yield from (f"{address or 'home'} ({size}): {error}" for error in errors)


def main() -> None:
    """Serves the site, opens each page at each size, and prints the faults. Faults give the exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--site", type=Path, default=SITE)
    parser.add_argument("--shots", type=Path)
    args = parser.parse_args()
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    serve = functools.partial(Quiet, directory=str(args.site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}/"
    files = [file for file in sorted(args.site.rglob("*.html")) if file.name != "404.html"]
    pages = [file.relative_to(args.site).as_posix().removesuffix("index.html") for file in files]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.browser, args=FLAGS)
        found = [
            f for page in pages for size in WIDTHS for f in faults(browser, root, page, size, args.shots)
        ]
        browser.close()
    server.shutdown()
    print(f"{len(pages)} pages at {len(WIDTHS)} sizes: {len(found)} faults")
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
