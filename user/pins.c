// SPDX-License-Identifier: Apache-2.0
#include "pins.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#define MAP_PREFIX "ph_"

int ph_pins_reuse(struct bpf_object *object, const char *bpf_dir, const char *what, char *error, size_t error_size)
{
	char path[PATH_MAX];
	struct bpf_map *map;
	int err, fd;

	bpf_object__for_each_map(map, object) {
		const char *name = bpf_map__name(map);

		if (bpf_map__is_internal(map) || strncmp(name, MAP_PREFIX, strlen(MAP_PREFIX)))
			continue;
		if ((size_t)snprintf(path, sizeof(path), "%s/%s", bpf_dir, name) >= sizeof(path))
			return -ENAMETOOLONG;
		fd = bpf_obj_get(path);
		err = fd < 0 ? fd : bpf_map__reuse_fd(map, fd);
		if (fd >= 0)
			close(fd);
		if (err) {
			snprintf(error, error_size, "%s: %s: %s", what, path, strerror(-err));
			return err;
		}
	}
	return 0;
}
