"""Makes the secrets of deploy/compose.yaml where there are none, in deploy/secrets: passwords, and Redis' users."""

import hashlib
import secrets
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "secrets"
# What each may do is explained in model_store/README.md.
RIGHTS = {
    "engineer": "~goldline:* resetchannels +@read +@write +@transaction +@connection -@dangerous",
    "worker": "%R~goldline:* resetchannels +@read +@connection",
}


def main(folder: Path = FOLDER) -> None:
    """Write what is missing. Files are readable in a folder that is not: their containers have users of their own."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in ("grafana", *(f"redis_{user}" for user in RIGHTS)):
        if not (folder / name).exists():
            (folder / name).write_text(secrets.token_urlsafe(24))
    lines = ["user default off"]
    for user, rights in RIGHTS.items():
        digest = hashlib.sha256((folder / f"redis_{user}").read_bytes()).hexdigest()
        lines.append(f"user {user} on #{digest} {rights}")
    (folder / "redis_users").write_text("\n".join(lines) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    main()
