"""The commands of `goldline`, one file each; every module has a `command`."""
