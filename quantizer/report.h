/* What a run was and measured, as JSON: run.json, bisup_report.json, and --json. */
#ifndef BISUP_QUANTIZER_REPORT_H
#define BISUP_QUANTIZER_REPORT_H

#include "common/buf.h"
#include "quantizer/calibration.h"
#include "quantizer/quantize.h"

/* One JSON object of all that the result's bytes depend on: equal texts, equal results. BIS_ERR_NOMEM, or the codes of
 * reading the model's folder. */
bis_status qz_report_identity(const qz_options *options, const qz_calibration *calibration, bis_buf *out,
                              bis_error *error);

/* One JSON object with a newline: options, calibration, figures of each layer and of the run. */
void qz_report_write(const qz_options *options, const qz_summary *summary, bis_buf *out);

#endif
