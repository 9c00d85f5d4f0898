"""Tables of README and docs: functions from what experiments found to Markdown."""
