import { applyDecorators } from '@nestjs/common';
import { ApiProperty } from '@nestjs/swagger';
import { Transform } from 'class-transformer';
import {
  IsInt,
  IsOptional,
  IsString,
  Max,
  MaxLength,
  Min,
  MinLength,
  registerDecorator,
} from 'class-validator';
import { isName, NAME_PATTERN, nameProblem } from './text';
import { IsId, parseId } from './validation';

/** The value is a name, see {@link nameProblem}, of at least one character. */
export const IsName = (maxLength: number): PropertyDecorator =>
  applyDecorators(
    ApiProperty({ pattern: NAME_PATTERN }),
    IsString(),
    MinLength(1),
    MaxLength(maxLength),
    ReadsAsName(),
  );

const ReadsAsName = (): PropertyDecorator => (target, property) =>
  registerDecorator({
    name: 'readsAsName',
    target: target.constructor,
    propertyName: property as string,
    validator: {
      validate: (value: unknown) => typeof value !== 'string' || isName(value),
      defaultMessage: (args) => nameProblem(String(args?.value)) ?? '',
    },
  });

/** The value, if given, is a whole number in the range; documented in OpenAPI too. */
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

/** The value of a query, if given, is an id in digits. Any other text is kept, for the validation to refuse. */
export const OptionalIdInQuery = (): PropertyDecorator =>
  applyDecorators(
    Transform(({ value }) => (typeof value === 'string' ? (parseId(value) ?? value) : value)),
    IsOptional(),
    IsId(),
  );
