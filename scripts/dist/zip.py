"""Makes a zip archive that is the same every time: zip.py ARCHIVE FOLDER."""

import os
import sys
import time
import zipfile

archive, folder = sys.argv[1:]
date = time.gmtime(int(os.environ["SOURCE_DATE_EPOCH"]))[:6]
with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
    for name in sorted(os.listdir(folder)):
        entry = zipfile.ZipInfo(f"{os.path.basename(folder)}/{name}", date)
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = 0o644 << 16
        with open(os.path.join(folder, name), "rb") as file:
            archive.writestr(entry, file.read())
