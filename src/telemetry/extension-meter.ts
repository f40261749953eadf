import { Injectable } from '@nestjs/common';
import {
  type CounterInstrument,
  type GaugeInstrument,
  type HistogramInstrument,
  type InstrumentOptions,
  Meter,
} from './meter';

/** How many sets of label values an extension's instrument can tell apart at most. */
const MAX_SERIES = 2_000;

/** What an extension's instrument is made from. */
export type ExtensionInstrumentOptions<Label extends string> = Omit<InstrumentOptions<Label>, 'splitBy'>;

/** The process's metrics as extensions get at them: each series they make has the rules of names and cardinality. */
@Injectable()
export class ExtensionMeter {
  constructor(private readonly meter: Meter) {}

  /** @throws Error the name or a label breaks the rules, or the name is taken */
  counter<Label extends string = never>(
    options: ExtensionInstrumentOptions<Label>,
  ): CounterInstrument<Label> {
    return this.meter.counter(bounded(options));
  }

  /** @throws Error the name or a label breaks the rules, or the name is taken */
  gauge<Label extends string = never>(options: ExtensionInstrumentOptions<Label>): GaugeInstrument<Label> {
    return this.meter.gauge(bounded(options));
  }

  /**
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
