import { applyDecorators } from '@nestjs/common';
import { ApiProperty } from '@nestjs/swagger';
import { Transform } from 'class-transformer';
import { IsInt, IsOptional, IsString, Matches, Max, MaxLength, Min, MinLength } from 'class-validator';
import { IsId, parseId } from './validation';

const NO_CONTROLS = /^\P{Cc}*$/u;

/** The value is one line of text, of at least one character. */
export const IsLine = (maxLength: number): PropertyDecorator =>
  applyDecorators(
    ApiProperty({ pattern: NO_CONTROLS.source }),
    IsString(),
    MinLength(1),
    MaxLength(maxLength),
    Matches(NO_CONTROLS, { message: 'must not hold control characters' }),
  );

/** The value, where there is one, is a whole number in the range; the OpenAPI document says so too. */
export const OptionalInteger = (range: {
  minimum: number;
  maximum: number;
  default?: number;
  example: number;
}): PropertyDecorator =>
  applyDecorators(
    ApiProperty({ required: false, nullable: true, type: 'integer', ...range }),
    IsOptional(),
    IsInt(),
    Min(range.minimum),
    Max(range.maximum),
  );

/** The value of a query, where there is one, is an id in digits. What is none stays as it is, to be refused. */
export const OptionalIdInQuery = (): PropertyDecorator =>
  applyDecorators(
    Transform(({ value }) => (typeof value === 'string' ? (parseId(value) ?? value) : value)),
    IsOptional(),
    IsId(),
  );
