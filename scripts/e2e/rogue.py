#!/usr/bin/env python3
"""A machine that says of every blob that it has it, and then gives something else.

    rogue.py SIZE PORT FILE

The blobs have this SIZE. What FILE says is what it gives: `wrong` bytes, too `short` or too `long` a
body, a `trickle`, `silence` behind the head, or a `redirect`.
"""

import os
import sys
import time

import serving

size, port, way_file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


class Handler(serving.Handler):
    def do_GET(self):
        way = open(way_file).read().strip()
        if not self.path.startswith("/ollana/blobs/"):
            return self.answer(200, b'{"version":"0.33.0"}')
        print(self.command, way, self.headers.get("Range", ""))
        if way == "redirect":
            return self.answer(307, Location="http://127.0.0.1:11434/api/tags")
        first, _ = self.range_begins(size)
        if self.command == "HEAD":
            return
        try:
            self.give(way, size - first)
        except OSError:
            pass
        self.close_connection = True

    def give(self, way, left):
        if way == "silence":
            time.sleep(60)
        elif way == "trickle":
            for _ in range(600):
                self.wfile.write(b"x")
                time.sleep(0.1)
        else:
            left += {"wrong": 0, "short": -(left // 2), "long": 4 << 20}[way]
            while left > 0:
                self.wfile.write(os.urandom(min(left, 1 << 20)))
                left -= 1 << 20


serving.Server(("", port), Handler).serve_forever()
