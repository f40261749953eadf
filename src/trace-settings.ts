const TRACE_SAMPLERS = [
  'always_on',
  'always_off',
  'traceidratio',
  'parentbased_always_on',
  'parentbased_always_off',
  'parentbased_traceidratio',
] as const;

/** The settings from OpenTelemetry's variables that its packages do not read themselves. */
export interface TraceSettings {
  readonly sampler: (typeof TRACE_SAMPLERS)[number];
  /** The share of traces that `traceidratio` samples, from 0 to 1. */
  readonly ratio: number;
  /** The options of OpenTelemetry's BatchSpanProcessor. */
  readonly batch: {
    readonly scheduledDelayMillis: number;
    readonly exportTimeoutMillis: number;
    readonly maxQueueSize: number;
    readonly maxExportBatchSize: number;
  };
}

/**
 * Reads OpenTelemetry's variables. As its specification says, invalid values are reported and ignored.
 * https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
 * @returns no settings if traces are off; the problems are sentences for the log
 */
export function readTraceSettings(env: NodeJS.ProcessEnv): { settings?: TraceSettings; problems: string[] } {
  const problems: string[] = [];
  const textOf = (name: string) => env[`OTEL_${name}`]?.trim() || undefined;
  const endpoint = ['EXPORTER_OTLP_TRACES_ENDPOINT', 'EXPORTER_OTLP_ENDPOINT'].find(textOf);
  const isOff = textOf('SDK_DISABLED')?.toLowerCase() === 'true' || textOf('TRACES_EXPORTER') === 'none';
  if (endpoint === undefined || isOff) return { problems };
  const isUrl = /^https?:$/.test(URL.parse(textOf(endpoint) as string)?.protocol ?? '');
  if (!isUrl) problems.push(`OTEL_${endpoint} must be an http or https URL`);
  const protocol = ['EXPORTER_OTLP_TRACES_PROTOCOL', 'EXPORTER_OTLP_PROTOCOL'].find(textOf);
  const isSupported = protocol === undefined || textOf(protocol) === 'http/protobuf';
  if (!isSupported) problems.push(`OTEL_${protocol} must be http/protobuf: no other protocol is spoken here`);
  if (!isUrl || !isSupported) return { problems: problems.map((problem) => `${problem}; traces are off`) };

  const numberOf = (name: string, fallback: number, min: number, max: number, isWhole = true): number => {
    const text = textOf(name);
    const value = Number(text ?? fallback);
    if (value >= min && value <= max && (!isWhole || Number.isInteger(value))) return value;
    problems.push(
      `OTEL_${name} must be ${isWhole ? 'an integer' : 'a number'} from ${min} to ${max}; taken as ${fallback}`,
    );
    return fallback;
  };
  const named = textOf('TRACES_SAMPLER')?.toLowerCase() ?? 'parentbased_always_on';
  const sampler = TRACE_SAMPLERS.find((name) => name === named);
  if (!sampler)
    problems.push(
      `OTEL_TRACES_SAMPLER must be one of ${TRACE_SAMPLERS.join(', ')}; taken as parentbased_always_on`,
    );
  const maxQueueSize = numberOf('BSP_MAX_QUEUE_SIZE', 2_048, 1, 65_536);
  return {
    settings: {
      sampler: sampler ?? 'parentbased_always_on',
      ratio: sampler?.endsWith('ratio') ? numberOf('TRACES_SAMPLER_ARG', 1, 0, 1, false) : 1,
      batch: {
        scheduledDelayMillis: numberOf('BSP_SCHEDULE_DELAY', 5_000, 1, 600_000),
        exportTimeoutMillis: numberOf('BSP_EXPORT_TIMEOUT', 30_000, 1, 600_000),
        maxQueueSize,
        maxExportBatchSize: Math.min(numberOf('BSP_MAX_EXPORT_BATCH_SIZE', 512, 1, 65_536), maxQueueSize),
      },
    },
    problems,
  };
}
