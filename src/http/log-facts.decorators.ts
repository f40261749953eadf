import { SetMetadata } from '@nestjs/common';

export const LOG_FACTS = Symbol('log-facts');

/** Returns further fields for the log line of a successful answer: ids only, never data of clients. */
export type LogFacts<Answer = never> = (answer: Answer) => Readonly<Record<string, unknown>>;

/** Adds fields from the answer to the log line of a successful request, such as the ids that it created. */
export const LogsFacts = <Answer extends object>(facts: LogFacts<Answer>) => SetMetadata(LOG_FACTS, facts);
