# SPDX-License-Identifier: Apache-2.0
"""Certificates for the lab, by the openssl command; ECDSA P-256, because emulated guests are slow."""
import subprocess


def openssl(*args):
    done = subprocess.run(["openssl", *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"openssl {' '.join(map(str, args))}: {done.stderr}")


class Authority:
    """A certificate authority in @directory; .pem is what clients trust."""
    def __init__(self, directory, name):
        self.directory, self.pem, self.key = directory, directory / f"{name}.pem", directory / f"{name}.key"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 30,
                "-subj", f"/CN={name}", "-keyout", self.key, "-out", self.pem)

    def issue(self, file, *names, days=30):
        """A certificate for @names. Returns (PEM, key) paths. @days below zero: expired that long ago."""
        pem, key = self.directory / f"{file}.pem", self.directory / f"{file}.key"
        subject = ["-subj", f"/CN={names[0]}", "-addext", "subjectAltName=" + ",".join(f"DNS:{name}" for name in names)]
        if days > 0:
            openssl("req", "-x509", "-CA", self.pem, "-CAkey", self.key, "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-days", days, *subject, "-keyout", key, "-out", pem)
        else:
            # Only `openssl x509` takes days that have passed.
            request = self.directory / f"{file}.csr"
            openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject, "-keyout", key,
                    "-out", request)
            openssl("x509", "-req", "-in", request, "-CA", self.pem, "-CAkey", self.key, "-days", days,
                    "-copy_extensions",
                    "copyall", "-out", pem)
        key.chmod(0o600)
        return pem, key
