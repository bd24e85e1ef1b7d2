/* A folder of its own for a test that needs files, and the shared data folder. One scratch folder per program. */
#ifndef BISUP_TESTS_SCRATCH_H
#define BISUP_TESTS_SCRATCH_H

#include <stddef.h>

/* Makes an empty folder under $TMPDIR (or /tmp), removing the one made before. Ends the test program where the
 * system refuses. The path stays valid until the next call. */
const char *scratch_make(void);

/* The path of a file in the folder; valid until the next call. */
const char *scratch_path(const char *name);

/* Writes a file in the folder, replacing it. */
void scratch_write(const char *name, const void *bytes, size_t size);
void scratch_write_text(const char *name, const char *text);

/* Removes the folder and the plain files in it. */
void scratch_remove(void);

/* The path of a file or folder of the data that tests share but the repository does not hold ($BISUP_SHARED, else
 * ../shared); valid until the next call. */
const char *shared_path(const char *name);

#endif
