"""Units of service managers: systemd on Linux, launchd on macOS."""
