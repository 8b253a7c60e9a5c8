/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PHALAD_VERSION_H
#define PHALAD_VERSION_H

#define PH_VERSION "0.1.0"

#endif
