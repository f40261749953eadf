import { Injectable } from '@nestjs/common';
import {
  type CounterInstrument,
  type GaugeInstrument,
  type HistogramInstrument,
  type InstrumentOptions,
  Meter,
} from './meter';

/** The most sets of label values that an extension's instrument may have. */
const MAX_SERIES = 2_000;

/** The options of an extension's instrument. */
export type ExtensionInstrumentOptions<Label extends string> = Omit<InstrumentOptions<Label>, 'splitBy'>;

/** Declares metrics for extensions, with the same rules for names and cardinality as the process's own. */
@Injectable()
export class ExtensionMeter {
  constructor(private readonly meter: Meter) {}

  /** Declares a counter. @throws Error the name or a label breaks the rules, or the name is taken */
  counter<Label extends string = never>(
    options: ExtensionInstrumentOptions<Label>,
  ): CounterInstrument<Label> {
    return this.meter.counter(bounded(options));
  }

  /** Declares a gauge. @throws Error the name or a label breaks the rules, or the name is taken */
  gauge<Label extends string = never>(options: ExtensionInstrumentOptions<Label>): GaugeInstrument<Label> {
    return this.meter.gauge(bounded(options));
  }

  /**
   * Declares a histogram.
   * @param options.buckets upper bounds in the unit of the name, ascending
   * @throws Error the name or a label breaks the rules, or the name is taken
   */
  histogram<Label extends string = never>(
    options: ExtensionInstrumentOptions<Label> & { readonly buckets: readonly number[] },
  ): HistogramInstrument<Label> {
    return this.meter.histogram({ ...bounded(options), buckets: options.buckets });
  }
}

const bounded = <Label extends string>({
  name,
  help,
  labels,
  maxSeries,
}: ExtensionInstrumentOptions<Label>): InstrumentOptions<Label> => ({
  ...{ name, help, labels },
  ...(maxSeries === undefined ? {} : { maxSeries: Math.min(maxSeries, MAX_SERIES) }),
});
