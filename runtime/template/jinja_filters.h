/* The filters of both files, for the table in jinja_filters.c. Internal. */
#ifndef BISUP_RUNTIME_JINJA_FILTERS_H
#define BISUP_RUNTIME_JINJA_FILTERS_H

#include "runtime/template/jinja_eval.h"

/* jinja_filters_list.c: filters that take or make sequences */
rt_jbuiltin rt_jfilter_batch, rt_jfilter_count, rt_jfilter_dictsort, rt_jfilter_first, rt_jfilter_items,
    rt_jfilter_join, rt_jfilter_last, rt_jfilter_list, rt_jfilter_map, rt_jfilter_max, rt_jfilter_min,
    rt_jfilter_reject, rt_jfilter_rejectattr, rt_jfilter_reverse, rt_jfilter_select, rt_jfilter_selectattr,
    rt_jfilter_slice, rt_jfilter_sort, rt_jfilter_sum, rt_jfilter_unique;

#endif
