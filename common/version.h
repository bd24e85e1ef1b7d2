/* The program's version. */
#ifndef BISUP_COMMON_VERSION_H
#define BISUP_COMMON_VERSION_H

#define BISUP_VERSION "0.1.0"

#endif
