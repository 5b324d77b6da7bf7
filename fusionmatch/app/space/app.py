"""Starts the page of this folder: `demo.json` says with which models and which catalogue."""

from fusionmatch.commands import main


raise SystemExit(main(["demo", "--config", "demo.json"]))
